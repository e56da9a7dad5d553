// Conversations, kept in this browser: each is an entry of localStorage, so that two tabs do not overwrite each other.
//
// A conversation is a tree of turns { role, text, ..., children, shown }: what is edited or asked again becomes another
// child beside the one before, and `shown` says which child of a turn is seen.
"use strict";

const PREFIX = "rocforge/chat/";
const chats = new Map();  // id -> { id, title, changed, children, shown }

function readChat(key) {
  try {
    const chat = JSON.parse(localStorage.getItem(key));
    if (Array.isArray(chat?.children)) chats.set(chat.id, chat);
  } catch { /* not one of ours */ }
}
function readChats() {
  for (const key of Object.keys(localStorage)) if (key.startsWith(PREFIX)) readChat(key);
}
const latestFirst = () => [...chats.values()].sort((one, other) => other.changed - one.changed);

// crypto.randomUUID is for pages by HTTPS only.
const newId = () => `${Date.now().toString(36)}-${Math.random().toString(36).slice(2)}`;
const newChat = () => ({ id: newId(), title: "", changed: Date.now(), children: [], shown: 0 });

// Keep a conversation; the error, where the browser does not.
function keepChat(chat) {
  chats.set(chat.id, chat);
  return kept(PREFIX + chat.id, JSON.stringify(chat));
}
function forgetChat(chat) {
  chats.delete(chat.id);
  localStorage.removeItem(PREFIX + chat.id);
}
function kept(key, text) {
  try { localStorage.setItem(key, text); } catch (error) { return error; }
  return null;
}

// The turns that are seen, first to last.
function path(chat) {
  const turns = [];
  for (let at = chat; (at = at.children[at.shown]);) turns.push(at);
  return turns;
}
const parentOf = (chat, turn) => path(chat)[path(chat).indexOf(turn) - 1] ?? chat;

// Add a turn behind another one, or beside those behind it, and show it.
function addTurn(parent, turn) {
  Object.assign(turn, { children: [], shown: 0 });
  parent.shown = parent.children.push(turn) - 1;
  return turn;
}
function titleOf(chat) {
  const first = chat.children[chat.shown]?.text.trim().replace(/\s+/g, " ") || "New conversation";
  return chat.title || (first.length > 60 ? `${first.slice(0, 60)}…` : first);
}
