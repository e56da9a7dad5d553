// Markdown as elements. What a model writes becomes an element only through DOMPurify; HTML in it is text.
"use strict";

const markdown = markdownit({
  linkify: true,
  highlight: (code, language) =>
    hljs.getLanguage(language) ? hljs.highlight(code, { language, ignoreIllegals: true }).value : "",
});
const ALLOWED = {
  ALLOWED_TAGS: ["h1", "h2", "h3", "h4", "h5", "h6", "p", "ul", "ol", "li", "blockquote", "pre", "code", "span", "em",
    "strong", "s", "a", "img", "table", "thead", "tbody", "tr", "th", "td", "hr", "br", "#text"],
  ALLOWED_ATTR: ["href", "title", "src", "alt", "class", "start", "align"],
  ADD_URI_SAFE_ATTR: ["start", "align"],
  ALLOWED_URI_REGEXP: /^(?:https?:|mailto:|data:image\/(?:gif|png|jpeg|webp);)/i,
  RETURN_DOM_FRAGMENT: true,
};
DOMPurify.addHook("afterSanitizeAttributes", (element) => {
  if (element.tagName === "A") Object.assign(element, { target: "_blank", rel: "noopener noreferrer" });
});

// An image of another place would tell that place who reads this: it is a link.
markdown.renderer.rules.image = (tokens, index, options, env, self) => {
  const token = tokens[index], source = token.attrGet("src"), text = self.renderInlineAsText(token.children, options, env);
  const escaped = markdown.utils.escapeHtml, shown = escaped(text || source);
  if (source.startsWith("data:")) return `<img src="${escaped(source)}" alt="${shown}">`;
  return `<a href="${escaped(source)}">${shown}</a>`;
};

// The policy allows no style attributes, which markdown-it writes for the columns of tables.
for (const name of ["th_open", "td_open"]) {
  markdown.renderer.rules[name] = (tokens, index, options, env, self) => {
    const token = tokens[index], side = token.attrGet("style")?.split(":")[1];
    if (side) token.attrs = [["align", side]];
    return self.renderToken(tokens, index, options);
  };
}

// The tokens of each block at the top.
function* blocks(tokens) {
  let start = 0;
  for (const [index, token] of tokens.entries()) {
    if (token.level > 0 || token.nesting === 1) continue;
    yield tokens.slice(start, index + 1);
    start = index + 1;
  }
}

// Show a text in an element. Blocks whose source is what it was stay as they are, so that a stream costs little and
// selections last; `whole`: all are compared as HTML, since a reference at the end may have changed one above.
function showMarkdown(body, text, whole) {
  const env = {}, lines = text.split(/\r\n?|\n/);
  let count = 0;
  for (const block of blocks(markdown.parse(text, env))) {
    const source = lines.slice(...block[0].map).join("\n"), old = body.children[count++];
    if (!whole && old?.source === source) continue;
    const html = markdown.renderer.render(block, markdown.options, env);
    if (old?.html === html) continue;
    const made = dressed(DOMPurify.sanitize(html, ALLOWED).firstElementChild ?? make("p"));
    const language = block[0].type === "fence" ? block[0].info.trim().split(/\s+/)[0] : "";
    const element = made.tagName === "PRE" ? codeBlock(made, language) : made;
    Object.assign(element, { source, html });
    old ? old.replaceWith(element) : body.append(element);
  }
  while (body.children.length > count) body.lastChild.remove();
}

// Code within lists and quotes gets its button too; wide tables scroll by themselves.
function dressed(element) {
  for (const pre of element.querySelectorAll("pre")) {
    const language = pre.firstElementChild?.className.match(/language-(\S+)/)?.[1] ?? "";
    const place = document.createComment("");
    pre.replaceWith(place);
    place.replaceWith(codeBlock(pre, language));
  }
  return element.tagName === "TABLE" ? make("div", { className: "table", tabIndex: 0 }, element) : element;
}

function codeBlock(pre, language) {
  pre.tabIndex = 0;
  pre.ariaLabel = language ? `Code in ${language}` : "Code";
  const bar = make("div", { className: "bar" }, make("span", {}, language), copier("Copy code", () => pre.textContent.replace(/\n$/, "")));
  return make("div", { className: "code" }, bar, pre);
}
