// What the page does: conversations, replies, settings, keys.
"use strict";

const form = $("settings"), field = form.elements, NUMBERS = [...form.querySelectorAll("[type=number]")].map((e) => e.name);
const running = new Map();  // id of a conversation -> the AbortController of its reply
let chat = newChat();
let models = [], model = { id: "", chat: true, context: null, images: false, state: "loading" };
const defaults = new Map(); // id of a model -> what /props says of its sampling
let lookAgain = 0;          // the timer of findModels
let images = [];            // data: URLs, to be sent with the next message

const mode = () => (model.chat ? field.mode.value : "text");

// ---- Keeping.

function save(one) {
  one.changed = Date.now();
  const error = keepChat(one);
  notice(error ? `This browser keeps no more: ${error.message} Delete a conversation, or copy what you need.` : "");
}
function saveSettings() {
  const settings = Object.fromEntries(new FormData(form));
  delete settings.key;
  const error = kept("rocforge", JSON.stringify({ settings, model: model.id, chat: chat.id }));
  if (error) notice(`Settings are not kept: ${error.message}`);
  try { sessionStorage.setItem("rocforge-key", field.key.value); } catch { /* it is asked for again */ }
}
function stored() {
  try { return JSON.parse(localStorage.getItem("rocforge")) ?? {}; } catch { return {}; }
}

// ---- Conversations.

function openChat(one) {
  chat = one;
  document.body.classList.remove("side");
  $("menu").ariaExpanded = "false";
  showChats();
  showChat();
  saveSettings();
  $("text").focus();
}
function askDelete(one) {
  $("ask-text").textContent = `“${titleOf(one)}” is kept in this browser only.`;
  $("ask").onclose = () => {
    if ($("ask").returnValue === "delete") {
      running.get(one.id)?.abort();
      forgetChat(one);
      if (one === chat) openChat(latestFirst()[0] ?? newChat()); else showChats();
      notice("");
    }
    $("ask").returnValue = "";
  };
  $("ask").showModal();
}
function askName(one) {
  $("name").value = titleOf(one);
  $("rename").onclose = () => {
    if ($("rename").returnValue === "rename") {
      one.title = $("name").value.trim();
      keepChat(one);
      showChats();
    }
    $("rename").returnValue = "";
  };
  $("rename").showModal();
  $("name").select();
}
function showVersion(parent, index) {
  parent.shown = index;
  save(chat);
  showChat();
}

// ---- Replies.

// Ask for what follows a turn of a conversation, as a new version of what follows it already.
async function answer(one, after) {
  const reply = addTurn(after, { role: "assistant", text: "", reasoning: "", calls: [], note: "" });
  const turns = path(one).slice(0, -1), stopper = new AbortController(), clock = meter(), wasLoaded = model.state === "loaded";
  running.set(one.id, stopper);
  let reason = null, shown = 0, keptAt = performance.now();
  save(one);
  showChats();
  if (one === chat) showChat();
  announce("The model writes");
  const looking = wasLoaded ? null : setTimeout(findModels, 300);
  try {
    const [url, body] = await question(turns, stopper.signal);
    const response = await request(url, { method: "POST", body: JSON.stringify(body), signal: stopper.signal });
    for await (const event of events(response.body)) {
      if (event.error) throw new Error(event.error.message);
      reason = event.choices?.[0]?.finish_reason ?? reason;
      const more = take(reply, event), now = performance.now();
      clock.note(more, event.usage?.completion_tokens, now);
      if (reply.text || reply.calls.length) reply.thought ??= reply.reasoning && clock.seconds(now);
      reply.note = clock.about(reason);
      if (now > shown && one === chat) { showTurns(reply); shown = performance.now() + 50; }
      if (now > keptAt + 1000) { save(one); keptAt = performance.now(); }
    }
  } catch (error) {
    if (error.name === "AbortError") reason = "stopped"; else reply.error = error.message;
  }
  clearTimeout(looking);
  if (!running.delete(one.id)) return;  // the page is left
  reply.note = clock.about(reason);
  if (chats.has(one.id)) save(one);
  if (one === chat) {
    showBusy();
    showTurns();
    announce(reply.error ? "" : reason === "stopped" ? "Stopped" : "Reply complete");
  }
  if (!wasLoaded) findModels();
}

// Counts tokens and times of a reply.
function meter() {
  const began = performance.now();
  let first = 0, last = 0, tokens = 0;
  return {
    note(more, counted, now) {
      if (more) { tokens += 1; last = now; first ||= now; }
      tokens = counted ?? tokens;
    },
    seconds: (now) => ((now - first) / 1000).toFixed(1),
    about: (reason) => [
      tokens ? `${tokens} token${tokens === 1 ? "" : "s"}` : null,
      last > first ? `${((tokens - 1) / (last - first) * 1000).toFixed(1)} tokens/s` : null,
      first ? `first after ${((first - began) / 1000).toFixed(2)} s` : null,
      reason === "length" ? "cut off by the token limit" : ["stop", "tool_calls"].includes(reason) ? null : reason,
    ].filter(Boolean).join(" · "),
  };
}

function send() {
  const text = $("text").value, turns = path(chat), goesOn = turns.length > 0 && mode() === "text";
  if (!text.trim() && !images.length && !goesOn) return;
  let last = turns.at(-1) ?? chat;
  if (text || images.length) last = addTurn(last, { role: "user", text, images });
  $("text").value = "";
  setImages([]);
  answer(chat, last);
}

// ---- Images.

function setImages(urls) {
  images = urls;
  $("images").hidden = !urls.length;
  $("images").replaceChildren(...urls.map((url, index) => make("span", {}, make("img", { src: url, alt: "Image to send" }),
    Object.assign(button("×", () => setImages(images.filter((_, other) => other !== index))), { ariaLabel: "Remove this image" }))));
}
async function takeFiles(files) {
  const pictures = [...files].filter((file) => file.type.startsWith("image/"));
  if (!pictures.length) return false;
  if (!model.images) notice(`${model.id} takes no images.`);
  else setImages([...images, ...(await Promise.all(pictures.map(dataURL)))]);
  return true;
}
const dataURL = (file) => new Promise((resolve, reject) => {
  const reader = new FileReader();
  reader.onload = () => resolve(reader.result);
  reader.onerror = () => reject(reader.error);
  reader.readAsDataURL(file);
});

// ---- Models.

async function findModels() {
  try {
    const { data } = await (await request("v1/models")).json();
    models = data.map((entry) => ({
      id: entry.id, chat: entry.chat_template !== false, context: entry.context_length,
      images: entry.architecture?.input_modalities?.includes("image") ?? false,
      state: entry.status?.failed ? "failed" : entry.status?.value ?? (entry.context_length === null ? "loading" : "loaded"),
    }));
    $("model").replaceChildren(...models.map(({ id }) => make("option", { value: id }, id)));
    $("model").disabled = models.length < 2;
    chooseModel(model.id);
    clearTimeout(lookAgain);
    if (models.some(({ state }) => state === "loading")) lookAgain = setTimeout(findModels, 1000);
  } catch (error) {
    $("state").textContent = error.message;
  }
}
const STATES = { loading: "is loading …", unloaded: "not loaded yet", failed: "does not load" };
function chooseModel(id) {
  const before = mode();
  model = models.find((one) => one.id === id) ?? models[0];
  $("model").value = $("model").title = model.id;
  $("state").textContent = STATES[model.state] ?? "";
  field.mode.disabled = !model.chat;
  if (!model.chat) field.mode.value = "text";
  if (model.state === "loaded") findDefaults().catch(() => {});  // the next question says what is wrong
  if (mode() !== before || !$("log").childElementCount) showChat();
  $("attach").hidden = mode() === "text" || !model.images;
}

// ---- Hands.

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  if (running.has(chat.id)) running.get(chat.id).abort(); else send();
});
$("text").addEventListener("keydown", (event) => {
  if (event.key === "ArrowUp" && !$("text").value && !running.has(chat.id)) {
    const mine = [...$("log").querySelectorAll("article.user")].at(-1);
    if (mine) { event.preventDefault(); edit(path(chat)[[...$("log").children].indexOf(mine)], mine); }
  }
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  if (!running.has(chat.id)) $("composer").requestSubmit();
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
  if (document.body.classList.contains("side")) return $("menu").click();
  running.get(chat.id)?.abort();
  $("text").focus();
});
document.addEventListener("paste", async (event) => {
  if (event.clipboardData.files.length && (await takeFiles(event.clipboardData.files))) event.preventDefault();
});
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => { event.preventDefault(); takeFiles(event.dataTransfer.files); });
$("attach").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", () => { takeFiles($("file").files); $("file").value = ""; });
$("fresh").addEventListener("click", () => openChat(newChat()));
$("menu").addEventListener("click", (event) => {
  event.stopPropagation();
  $("menu").ariaExpanded = String(document.body.classList.toggle("side"));
});
$("main").addEventListener("click", () => { if (document.body.classList.contains("side")) $("menu").click(); });
$("model").addEventListener("change", () => { chooseModel($("model").value); saveSettings(); });
$("open").addEventListener("click", () => $("dialog").showModal());
$("dialog").addEventListener("click", (event) => { if (event.target === $("dialog")) $("dialog").close(); });
$("dialog").addEventListener("close", () => { findModels(); showChat(); $("text").focus(); });
$("defaults").addEventListener("click", () => { const key = field.key.value; form.reset(); field.key.value = key; changed(); });
form.addEventListener("input", changed);
window.addEventListener("storage", (event) => {
  if (!event.key?.startsWith(PREFIX) || running.has(event.key.slice(PREFIX.length))) return;
  const id = event.key.slice(PREFIX.length);
  chats.delete(id);
  readChat(event.key);
  showChats();
  if (chat.id === id && chats.has(id)) { chat = chats.get(id); showChat(); }
});
window.addEventListener("pagehide", () => {
  for (const id of running.keys()) {
    path(chats.get(id)).at(-1).note += " · left while it was written";
    save(chats.get(id));
  }
  running.clear();
});

function changed() {
  document.documentElement.dataset.theme = field.theme.value;
  saveSettings();
}

const before = stored();
for (const [name, value] of Object.entries(before.settings ?? {})) if (field[name]) field[name].value = value;
try { field.key.value = sessionStorage.getItem("rocforge-key") ?? ""; } catch { /* a browser that keeps nothing */ }
document.documentElement.dataset.theme = field.theme.value;
model.id = before.model ?? "";
readChats();
if (before.turns?.length) {  // one of a version that had no more than one
  before.turns.reduce(addTurn, chat);
  keepChat(chat);
  saveSettings();
}
chat = (before.chat ? chats.get(before.chat) : latestFirst()[0]) ?? chat;
showChats();
showChat();
findModels();
