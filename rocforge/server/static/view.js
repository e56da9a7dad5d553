// Showing a conversation.
"use strict";

const $ = (id) => document.getElementById(id);
const make = (tag, properties, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};
const button = (text, onclick) => make("button", { type: "button", className: "quiet", onclick }, text);
const announce = (text) => { $("status").textContent = text; };
function notice(text) {
  $("notice").textContent = text;
  $("notice").hidden = !text;
}

// A button that copies a text, and says so itself.
function copier(name, text) {
  const copy = button(name, async () => {
    copy.textContent = (await copied(text())) ? "Copied" : "Not allowed by the browser";
    announce(copy.textContent);
    setTimeout(() => { copy.textContent = name; }, 1500);
  });
  return copy;
}
async function copied(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text).then(() => true, () => false);
  const area = make("textarea", { value: text, className: "hidden" });  // pages by HTTP have no clipboard
  document.body.append(area);
  area.select();
  try { return document.execCommand("copy"); } finally { area.remove(); }
}

const toBottom = () => { $("scroll").scrollTop = $("scroll").scrollHeight; };
const atBottom = () => $("scroll").scrollHeight - $("scroll").scrollTop - $("scroll").clientHeight < 60;

function showChats() {
  $("chats").replaceChildren(...latestFirst().map((one) => {
    const title = titleOf(one), open = make("button", { type: "button", className: "title", title, onclick: () => openChat(one) }, title);
    if (one === chat) open.setAttribute("aria-current", "true");
    const [rename, remove] = [button("Rename", () => askName(one)), button("Delete", () => askDelete(one))];
    rename.ariaLabel = `Rename ${title}`;
    remove.ariaLabel = `Delete ${title}`;
    return make("li", {}, open, make("span", { className: "actions" }, rename, remove));
  }));
}

function showChat() {
  const text = mode() === "text", turns = path(chat);
  $("empty").hidden = turns.length > 0;
  $("invitation").textContent = text ? "Begin a text" : "Ask something";
  $("explanation").textContent = text
    ? "The model writes on from where you stop. Enter sends, Shift+Enter breaks the line, Esc stops; Enter alone goes on."
    : "Enter sends, Shift+Enter breaks the line, Esc stops.";
  $("text-label").textContent = $("text").placeholder = text ? "Text to continue" : "Message";
  $("attach").hidden = text || !model.images;
  $("log").classList.toggle("document", text && turns.length > 0);
  $("log").replaceChildren(...turns.map(article));
  showBusy();
  toBottom();
}
function showBusy() {
  const busy = running.has(chat.id);
  $("send").textContent = busy ? "Stop" : "Send";
  $("send").classList.toggle("stop", busy);
  $("log").ariaBusy = String(busy);
}

const NAMES = { user: "You", assistant: "Model", tool: "Result" };
function article(turn) {
  const thought = make("details", { className: "thought" }, make("summary"), make("div", { className: "text" }));
  const parts = [thought, ...["body", "calls", "about"].map((className) => make("div", { className }))];
  const element = make("article", { className: turn.role, ariaLabel: NAMES[turn.role] }, ...parts);
  update(turn, element);
  return element;
}
// Show what has changed of the turns, or of the last one, which is being written.
function showTurns(writing) {
  const follow = atBottom(), turns = path(chat);
  for (const [index, element] of [...$("log").children].entries()) {
    if (!writing || turns[index] === writing) update(turns[index], element);
  }
  if (follow) toBottom();
}
function update(turn, element) {
  const [thought, body, calls, about] = element.children, isLast = turn === path(chat).at(-1);
  const busy = running.has(chat.id) && isLast, whole = isLast && !busy;
  if (body.querySelector(".edit")) return;
  thought.hidden = !turn.reasoning;
  if (turn.reasoning) {
    thought.firstChild.textContent = turn.thought ? `Thought for ${turn.thought} s` : busy ? "Thinking …" : "Thought";
    showMarkdown(thought.lastChild, turn.reasoning, whole);
  }
  if (turn.role === "assistant" && mode() === "chat") showMarkdown(body, turn.text, whole); else body.textContent = turn.text;
  for (const url of turn.images ?? []) body.append(make("img", { src: url, alt: "Image" }));
  calls.replaceChildren(...(turn.calls ?? []).map(callBlock));
  if (turn.calls?.length && !busy && isLast) calls.append(results(turn));
  element.classList.toggle("waiting", busy && turn.role === "assistant");
  about.replaceChildren(turn.note ?? "");
  if (turn.error) about.append(make("div", { className: "error", role: "alert" }, turn.error));
  if (!running.has(chat.id)) about.append(...actions(turn, element));
}
function actions(turn, element) {
  const parent = parentOf(chat, turn), count = parent.children.length, found = [];
  if (count > 1) {
    const step = (by, name, text) => Object.assign(button(text, () => showVersion(parent, parent.shown + by)),
      { ariaLabel: name, disabled: !parent.children[parent.shown + by] });
    found.push(step(-1, "Previous version", "‹"), `${parent.shown + 1} of ${count}`, step(1, "Next version", "›"));
  }
  if (turn.text) found.push(copier("Copy", () => turn.text), button("Edit", () => edit(turn, element)));
  if (turn.role === "assistant") found.push(button("Try again", () => answer(chat, parent)));
  return found;
}

function callBlock(call) {
  const { name, arguments: text } = call.function;
  let shown = text;
  try { shown = JSON.stringify(JSON.parse(text), null, 2); } catch { /* it is still being written, or cut off */ }
  return make("div", { className: "code" }, make("div", { className: "bar" }, make("span", {}, `Calls ${name}`)), make("pre", { tabIndex: 0, ariaLabel: `Arguments of ${name}` }, shown));
}
// A field for the result of each call.
function results(turn) {
  const fields = turn.calls.map((call) => make("textarea", { ariaLabel: `Result of ${call.function.name}`, placeholder: `Result of ${call.function.name}`, rows: 2 }));
  const send = make("button", { className: "primary" }, "Send results");
  const form = make("form", { className: "edit" }, ...fields, send);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    let at = turn;
    for (const [index, call] of turn.calls.entries()) at = addTurn(at, { role: "tool", text: fields[index].value, call: call.id });
    answer(chat, at);
  });
  return form;
}

// Edit a turn in its place. What was there stays as another version.
function edit(turn, element) {
  const parent = parentOf(chat, turn), asks = turn.role === "user" && mode() === "chat";
  const area = make("textarea", { value: turn.text, ariaLabel: "Edited message" });
  const cancel = button("Cancel", () => { form.remove(); update(turn, element); });
  const form = make("form", { className: "edit" }, area, make("button", { className: "primary" }, asks ? "Send" : "Save"), cancel);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const { role, images, call } = turn, edited = addTurn(parent, { role, images, call, text: area.value });
    if (asks) return answer(chat, edited);
    save(chat);
    showChat();
  });
  form.addEventListener("keydown", (event) => {
    if (event.key === "Escape") { event.stopPropagation(); cancel.click(); }
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
  element.children[1].replaceChildren(form);
  element.lastChild.replaceChildren();
  area.focus();
}
