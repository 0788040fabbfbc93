// The page as it is now, every few seconds. Without this script it is as it was when it was asked for.
"use strict";
setInterval(async () => {
  if (document.hidden) return;
  const stale = document.getElementById("stale");
  try {
    const answer = await fetch("/", { headers: { accept: "text/html" } });
    if (!answer.ok) throw new Error(answer.statusText);
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    document.querySelector("main").replaceWith(page.querySelector("main"));
    stale.hidden = true;
  } catch {
    stale.hidden = false;
  }
}, 3000);
