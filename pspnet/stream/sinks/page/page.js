"use strict";

const show = (name, text) => { document.getElementById(name).textContent = text; };
const milliseconds = (value) => (value === undefined || value === null ? "-" : `${Math.round(value)} ms`);

function state(text, kind) {
  show("state", text);
  document.getElementById("state").className = kind;
}

let lost = false;

async function refresh() {
  try {
    const answer = await fetch("/status.json");
    const status = await answer.json();
    const latency = Object.entries(status.sinks || {}).find(([name]) => name.startsWith("web "))?.[1].latency || {};
    show("rate", (status.recent_masks_per_second || 0).toFixed(1));
    for (const share of ["p50", "p95", "p99"]) show(share, milliseconds(latency[`${share}_ms`]));
    show("model", milliseconds(status.inference?.p50_ms));
    for (const name of ["masks", "late", "broken", "failed"]) show(name, status[name] ?? "-");
    state("live", "live");
    // After a restart of the stream the picture is asked for anew.
    if (lost) document.getElementById("stream").src = `/stream.mjpg?${Date.now()}`;
    lost = false;
  } catch {
    state("the stream has ended", "over");
    lost = true;
  }
  setTimeout(refresh, 1000);
}

refresh();
