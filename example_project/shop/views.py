"""One page, the JSON that keeps it up to date, and what its buttons do."""

from typing import Any

from django.http import (
    FileResponse,
    Http404,
    HttpRequest,
    HttpResponse,
    HttpResponseBase,
    JsonResponse,
)
from django.shortcuts import redirect, render
from django.template.loader import render_to_string
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import ensure_csrf_cookie
from django.views.decorators.http import require_GET, require_POST

from shop import board, dead_letters
from shop.buttons import BUTTONS, press
from shop.models import JobRecord, State
from shop.tasks import REPORT
from uwsgi_tasks import default_app


@require_GET
@never_cache
@ensure_csrf_cookie
def page(request: HttpRequest) -> HttpResponse:
    """Show everything; without JavaScript, the page loads itself again."""
    return render(request, "shop/page.html", {"buttons": BUTTONS.values(), **board.read()})


@require_GET
@never_cache
def jobs(_request: HttpRequest) -> JsonResponse:
    """Return what has become of the jobs, for programs and for the page's script."""
    content = board.read()
    return JsonResponse(
        {
            "now": timezone.now(),
            "counts": content["counts"],
            "sections": [
                {
                    "name": section.name,
                    "hidden": section.hidden,
                    "jobs": [_job(record) for record in section.records],
                }
                for section in content["sections"]
            ],
            "clock": render_to_string("shop/_clock.html", content),
            "pulse": render_to_string("shop/_pulse.html", content),
            "report": content["report"] and str(content["report"]),
        }
    )


def _job(record: JobRecord) -> dict[str, Any]:
    return {
        "id": record.pk,
        "kind": record.kind,
        "title": record.title,
        "phase": record.phase,
        "runs": record.runs,
        "note": record.note,
        "error": record.error,
        # Drawn here, so that the page looks the same with and without its script.
        "html": render_to_string("shop/_job.html", {"job": record}),
    }


@require_GET
@never_cache
def report(_request: HttpRequest) -> HttpResponseBase:
    """Return the sales report that a mule drew last."""
    try:
        return FileResponse(
            REPORT.open("rb"),
            content_type="image/svg+xml",
            headers={"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"},
        )
    except FileNotFoundError as error:
        raise Http404("not drawn yet") from error


@require_POST
def submit(request: HttpRequest) -> HttpResponse:
    """Submit the jobs of one button."""
    button = BUTTONS.get(request.POST.get("job", ""))
    if not button:
        raise Http404("no such button")
    records = press(button)
    return _answer(request, {"submitted": [record.pk for record in records]})


@require_POST
def requeue(request: HttpRequest) -> HttpResponse:
    """Give a dead job back to the spooler."""
    key = request.POST.get("job", "")
    failed = JobRecord.objects.filter(pk=key if key.isdecimal() else None, state=State.FAILED)
    record = failed.first()
    if not record or not record.can_be_requeued:
        raise Http404("no such dead letter")
    # First the record, for the spooler may be faster than we are.
    won = failed.update(state=State.WAITING, due_at=None, ended_at=None, error="")
    # Of two clicks at a time, one.
    if won and not dead_letters.requeue(record.job_id):
        JobRecord.objects.filter(pk=record.pk).update(
            state=State.FAILED,
            ended_at=timezone.now(),
            job_id="",
            error=f"{record.error} (its dead letter is gone)",
        )
    return _answer(request, {"requeued": record.pk})


@require_POST
def stop(request: HttpRequest) -> HttpResponse:
    """Ask a running job to stop; its task looks for that after each step."""
    key = request.POST.get("job", "")
    record = JobRecord.objects.filter(pk=key if key.isdecimal() else None).first()
    if not record or not record.can_be_stopped:
        raise Http404("no such running job")
    default_app.job(record.job_id).cancel()
    return _answer(request, {"asked to stop": record.pk})


@require_POST
def clear(request: HttpRequest) -> HttpResponse:
    """Forget what is done. What failed stays until somebody has dealt with it."""
    number, _ = JobRecord.objects.filter(state=State.DONE).delete()
    return _answer(request, {"cleared": number})


def _answer(request: HttpRequest, content: dict[str, Any]) -> HttpResponse:
    """JSON for the page's script; for a plain form, the page again."""
    if request.accepts("text/html"):
        return redirect("page")
    return JsonResponse(content)
