// Asking the server, by URLs relative to the page's own.
"use strict";

const headers = () => ({ "Content-Type": "application/json", ...(field.key.value && { Authorization: `Bearer ${field.key.value}` }) });

async function request(path, options) {
  let response;
  try { response = await fetch(path, { ...options, headers: headers() }); } catch (error) {
    throw error.name === "AbortError" ? error : new Error("The server does not answer.");
  }
  if (response.ok) return response;
  const reply = await response.json().catch(() => null);
  const reason = reply?.error?.message ?? `The server answers ${response.status} ${response.statusText}`;
  throw new Error(response.status === 401 ? `${reason} (Settings has a field for the API key.)` : reason);
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ""; ;) {
    const { value, done } = await reader.read().catch((error) => {
      throw error.name === "AbortError" ? error : new Error("The connection broke.");
    });
    if (done) throw new Error("The connection ended before the reply did.");
    const lines = (rest + value).split(/\r?\n/);
    rest = lines.pop();
    for (const line of lines) {
      if (line === "data: [DONE]") return;
      if (line.startsWith("data:")) yield JSON.parse(line.slice(5));
    }
  }
}

// The path and body that ask for what follows some turns.
async function question(turns, signal) {
  const body = { model: model.id, stream: true, stream_options: { include_usage: true }, ...(await findDefaults(signal)) };
  for (const name of NUMBERS) if (field[name].value !== "") body[name] = Number(field[name].value);
  if (field.stop.value) body.stop = field.stop.value;
  if (mode() === "text") {
    const prompt = turns.map((turn) => turn.text).join("");
    body.max_tokens ??= await room(prompt, signal);
    return ["v1/completions", { ...body, prompt }];
  }
  if (field.reasoning_effort.value) body.reasoning_effort = field.reasoning_effort.value;
  if (field.tools.value.trim()) body.tools = tools(field.tools.value);
  const messages = turns.map(message).filter(Boolean);
  if (field.system.value) messages.unshift({ role: "system", content: field.system.value });
  return ["v1/chat/completions", { ...body, messages }];
}

// Show what the server takes where a setting is empty, and give what this page takes instead: where neither the file nor
// the server recommends a temperature and a top_p, those are the API's own 1, with which small models ramble.
async function findDefaults(signal) {
  if (!defaults.has(model.id)) {
    const url = `props?model=${encodeURIComponent(model.id)}`;
    defaults.set(model.id, (await (await request(url, { signal })).json()).default_generation_settings.params);
  }
  const found = defaults.get(model.id), plain = found.temperature === 1 && found.top_p === 1;
  const own = plain ? { temperature: 0.7, top_p: 0.95 } : {};
  for (const name of NUMBERS) if (name in found) field[name].placeholder = own[name] ?? found[name];
  return own;
}

function tools(text) {
  try { return JSON.parse(text); } catch (error) { throw new Error(`Tools, in Settings, are not JSON: ${error.message}`); }
}

function message({ role, text, images = [], calls = [], call }) {
  if (role === "tool") return { role, tool_call_id: call, content: text };
  if (calls.length) return { role, content: text, tool_calls: calls };
  if (!images.length) return text ? { role, content: text } : null;
  const said = text ? [{ type: "text", text }] : [];
  return { role, content: [...said, ...images.map((url) => ({ type: "image_url", image_url: { url } }))] };
}

// Tokens that fit after a prompt: the API's own default for a continuation is 16.
async function room(prompt, signal) {
  const body = JSON.stringify({ model: model.id, content: prompt, add_special: true });
  const { count } = await (await request("tokenize", { method: "POST", body, signal })).json();
  if (model.context === null) await findModels();  // that has loaded it
  return Math.max(1, model.context - count);
}

// Add what an event says to a reply; whether it was something.
function take(reply, event) {
  const choice = event.choices?.[0], delta = choice?.delta ?? {}, text = delta.content ?? choice?.text ?? "";
  reply.text += text;
  reply.reasoning += delta.reasoning_content ?? "";
  for (const { index, id, function: { name = "", arguments: more = "" } = {} } of delta.tool_calls ?? []) {
    const call = (reply.calls[index] ??= { id, type: "function", function: { name: "", arguments: "" } });
    call.function.name += name;
    call.function.arguments += more;
  }
  return Boolean(text || delta.reasoning_content || delta.tool_calls);
}
