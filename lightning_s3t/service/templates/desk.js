// The desk: sends its forms, and puts the sections that come back in the place of those of the same id.
// The token is in this page's memory alone, and ids of people are in the bodies of requests alone.
"use strict";

const find = (id) => document.getElementById(id);
let token = "";

async function call(path, fields) {
  const options = { cache: "no-store", credentials: "omit", redirect: "error" };
  options.headers = { Authorization: `Bearer ${token}`, "Content-Type": "application/json" };
  if (fields) Object.assign(options, { method: "POST", body: JSON.stringify(fields) });
  const answer = await fetch(path, options).catch(() => {
    throw new Error("The desk cannot be reached. To ask once more with the same name is no second request.");
  });
  if (answer.ok) return answer.text();
  const { error } = await answer.json().catch(() => ({}));
  throw new Error(error?.message ?? `The desk has answered with status ${answer.status}.`);
}

function show(html) {
  const answer = new DOMParser().parseFromString(html, "text/html"); // runs no scripts
  const heading = answer.querySelector("[autofocus]");
  for (const section of [...answer.body.children]) find(section.id).replaceWith(section);
  heading?.focus(); // a screen reader says it, and the keyboard goes on from there
}

async function act(deed) {
  if (document.body.ariaBusy === "true") return; // a second click
  document.body.ariaBusy = "true";
  find("said").textContent = "Working …";
  find("wrong").textContent = "";
  try {
    await deed();
  } catch (error) {
    find("wrong").textContent = error.message;
  }
  find("said").textContent = "";
  document.body.ariaBusy = "false";
}

document.addEventListener("submit", (event) => {
  event.preventDefault();
  const form = event.target;
  const fields = Object.fromEntries(new FormData(form));
  act(async () => {
    if (form.id !== "sign-in") return show(await call(form.getAttribute("action"), fields));
    token = fields.token;
    const html = await call(form.getAttribute("action"), {});
    form.remove();
    find("sign-out").hidden = false;
    show(html);
  });
});

document.addEventListener("click", (event) => {
  const number = event.target.closest("[data-receipt]")?.dataset.receipt;
  if (number) {
    act(async () => {
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([await call(`receipts/${number}`)], { type: "application/json" }));
      link.download = `receipt-${number}.json`;
      link.click();
      URL.revokeObjectURL(link.href);
    });
  }
});

find("sign-out").addEventListener("click", () => location.reload());
addEventListener("pageshow", (event) => event.persisted && location.reload()); // came back to by the browser's history
