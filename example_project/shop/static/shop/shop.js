// Keeps the page up to date. All that it shows is drawn by the server: this only puts it in place.
"use strict";

const BUSY = 500;
const IDLE = 1500;
const live = document.getElementById("live");
const said = document.getElementById("said");
const parts = new Map(); // a list item or panel, and the text that it was made of
let skew = 0; // the server's clock minus ours, in milliseconds
let timer = 0;
let asked = 0;

function put(key, element, html) {
  if (parts.get(key) === html) return;
  parts.set(key, html);
  element.innerHTML = html;
}

function listItem(job, old) {
  const key = `job-${job.id}`;
  if (old && parts.get(key) === job.html) return old;
  const known = parts.has(key);
  parts.set(key, job.html);
  const template = document.createElement("template");
  template.innerHTML = job.html.trim();
  const item = template.content.firstElementChild;
  if (!known) item.classList.add("new");
  return item;
}

function fill(section) {
  const box = document.querySelector(`[data-section="${section.name}"]`);
  const list = box.querySelector("ol");
  const old = new Map([...list.children].map((item) => [item.dataset.job, item]));
  const items = section.jobs.map((job) => listItem(job, old.get(String(job.id))));
  // What stays in its place is not touched, so that it keeps the focus and a selection.
  if (items.length !== list.children.length || items.some((item, i) => item !== list.children[i])) {
    list.replaceChildren(...items);
  }
  const more = box.querySelector(".more");
  more.hidden = !section.hidden;
  more.querySelector("b").textContent = section.hidden;
}

function show(data) {
  skew = new Date(data.now) - Date.now();
  for (const [phase, number] of Object.entries(data.counts)) {
    const cell = document.querySelector(`[data-count="${phase}"]`);
    cell.textContent = number;
    cell.parentElement.classList.toggle("none", !number);
  }
  data.sections.forEach(fill);
  put("clock", document.getElementById("clock"), data.clock);
  put("pulse", document.getElementById("pulse"), data.pulse);
  const report = document.getElementById("report");
  const address = data.report && `/report.svg?${data.report}`;
  if (address && report.getAttribute("src") !== address) report.src = address;
  report.hidden = !address;
  document.getElementById("no-report").hidden = Boolean(address);
  tellTimes();
}

function say(text, state) {
  if (live.textContent !== text) live.textContent = text;
  live.dataset.state = state;
}

async function refresh() {
  clearTimeout(timer);
  const number = ++asked;
  let pause = IDLE;
  try {
    const answer = await fetch("/jobs.json", { cache: "no-store" });
    if (!answer.ok) throw new Error(answer.statusText);
    const data = await answer.json();
    if (number !== asked) return; // a later question is under way
    show(data);
    say("Live", "here");
    if (data.counts.pending + data.counts.delayed + data.counts.running) pause = BUSY;
  } catch {
    if (number !== asked) return;
    say("The server does not answer", "away");
  }
  if (!document.hidden) timer = setTimeout(refresh, pause);
}

// ---- times, told anew ten times a second

const clock = new Intl.DateTimeFormat([], { timeStyle: "medium", hourCycle: "h23" });
const spell = (ms) => {
  const seconds = Math.max(ms, 0) / 1000;
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  return seconds < 3600 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds / 3600)} h`;
};
const whole = (ms) => spell(Math.round(Math.max(ms, 0) / 1000) * 1000).replace(".0", "");
const ways = {
  clock: (at) => clock.format(at),
  since: (at, now) => spell(now - at),
  in: (at, now) => `in ${spell(at - now)}`,
  ago: (at, now) => `${whole(now - at)} ago`,
};

function tellTimes() {
  const now = Date.now() + skew;
  for (const element of document.querySelectorAll("time[data-show]")) {
    const text = ways[element.dataset.show](new Date(element.dateTime), now);
    if (element.textContent !== text) element.textContent = text;
  }
}

// ---- buttons, without leaving the page

document.addEventListener("submit", async (event) => {
  const { target: form, submitter } = event;
  event.preventDefault();
  const fields = new FormData(form);
  if (submitter?.name) fields.append(submitter.name, submitter.value);
  const what = submitter?.dataset.says;
  try {
    const answer = await fetch(form.action, {
      method: "POST",
      body: fields,
      headers: { Accept: "application/json" },
    });
    if (!answer.ok) throw new Error(`${answer.status} ${answer.statusText}`);
    if (what) said.textContent = `Submitted at ${clock.format(Date.now())}: ${what}`;
  } catch (error) {
    said.textContent = `Not submitted: ${error.message}`;
  }
  refresh();
});

document.addEventListener("visibilitychange", () => {
  if (!document.hidden) refresh();
});
setInterval(tellTimes, 100);
refresh();
