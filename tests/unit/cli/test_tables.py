"""Tables, on a terminal and in a pipe."""

from rich.console import Console

from uwsgi_tasks.cli import tables


def printed(capsys, show, *, terminal, **options):
    show(Console(force_terminal=terminal, highlight=False, **options))
    return capsys.readouterr().out


def test_a_table_in_a_pipe_has_one_line_a_row_and_cuts_nothing(capsys):
    rows = [("i" * 50, "a\nb"), ("x", "y" * 500)]

    out = printed(
        capsys, lambda c: tables.show_table(("ID", "TEXT"), rows, c), terminal=False, width=20
    )

    assert out.splitlines() == [
        "ID" + " " * 48 + "  TEXT",
        "i" * 50 + "  a b",
        "x" + " " * 49 + "  " + "y" * 500,
    ]


def test_on_a_narrow_terminal_the_ids_are_whole_and_brackets_are_no_style(capsys):
    rows = [("0123456789abcdef-123", "shop.send[red]" * 3)]

    out = printed(
        capsys, lambda c: tables.show_table(("ID", "TASK"), rows, c), terminal=True, width=40
    )

    assert "0123456789abcdef-123" in out
    assert "[red]" in out.replace("\n", "")


def test_a_terminal_is_not_filled_with_empty_columns(capsys):
    def show(console):
        tables.show_table(("ID", "PRIO", "TASK"), [("1", "", "a"), ("2", "", "b")], console)

    assert "PRIO" not in printed(capsys, show, terminal=True)
    assert "PRIO" in printed(capsys, show, terminal=False)


def test_pairs_leave_out_what_is_not_known(capsys):
    pairs = [("id", "1"), ("error", None), ("traceback", "one\n  two\n")]

    out = printed(capsys, lambda c: tables.show_pairs(pairs, c), terminal=False, width=10)

    assert out.splitlines() == ["id         1", "traceback  ", "    one", "      two"]
