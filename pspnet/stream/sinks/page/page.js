"use strict";

const show = (name, text) => { document.getElementById(name).textContent = text; };
const milliseconds = (value) => (value === undefined || value === null ? "-" : `${Math.round(value)} ms`);

function setState(text, className) {
  show("state", text);
  document.getElementById("state").className = className;
}

let disconnected = false;

async function refresh() {
  try {
    const response = await fetch("/status.json");
    const status = await response.json();
    const latency = Object.entries(status.sinks || {}).find(([name]) => name.startsWith("web "))?.[1].latency || {};
    show("rate", (status.recent_masks_per_second || 0).toFixed(1));
    for (const name of ["p50", "p95", "p99"]) show(name, milliseconds(latency[`${name}_ms`]));
    show("model", milliseconds(status.inference?.p50_ms));
    for (const name of ["masks", "late", "broken", "failed"]) show(name, status[name] ?? "-");
    setState("live", "live");
    // Reload the image after the stream was restarted.
    if (disconnected) document.getElementById("stream").src = `/stream.mjpg?${Date.now()}`;
    disconnected = false;
  } catch {
    setState("stream ended", "ended");
    disconnected = true;
  }
  setTimeout(refresh, 1000);
}

refresh();
