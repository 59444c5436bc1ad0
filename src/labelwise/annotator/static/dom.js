// Building the page. Every text goes in as a text node: names of classes and images come from files of other people.

/** An element with properties (`class`, `data-…`, `aria-…` and other attributes; functions as listeners) and children. */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (typeof value === "function") made.addEventListener(name, value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, String(value));
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

export function button(text, action, properties = {}, key = null) {
  const children = key ? [text, " ", element("kbd", {}, key)] : [text];
  return element("button", { type: "button", click: action, ...properties }, ...children);
}

/** A round square with a class's color; set as a property, for the strict policy forbids style attributes. */
export function swatch(color) {
  const made = element("span", { class: "swatch", "aria-hidden": "true" });
  made.style.backgroundColor = color;
  return made;
}

/** What is shown where there is nothing to label: a heading, a sentence or two, and what can be done. */
export function notice(title, sentences, ...actions) {
  const lines = sentences.map((sentence) => element("p", {}, sentence));
  const row = actions.length ? [element("p", { class: "actions" }, ...actions)] : [];
  return element("div", { class: "empty" }, element("h2", {}, title), ...lines, ...row);
}

/** `3.4 s`, `2 min 05 s`. */
export function duration(seconds) {
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  return `${Math.floor(whole / 60)} min ${String(whole % 60).padStart(2, "0")} s`;
}

/** The pressed key of a letter or digit; null where it belongs to the browser (Ctrl-T, Alt-D, ...). */
export function plainKey(event) {
  const foreign = event.metaKey || ((event.ctrlKey || event.altKey) && !event.getModifierState("AltGraph"));
  return foreign || event.key.length !== 1 ? null : event.key.toLowerCase();
}

export const isShiftLetter = (event) => event.shiftKey && /^[a-z]$/i.test(event.key);

export const isUndo = (event) => (event.ctrlKey || event.metaKey) && !event.shiftKey && event.key.toLowerCase() === "z";

export const isRedo = (event) =>
  (event.ctrlKey || event.metaKey) &&
  (event.key.toLowerCase() === "y" || (event.shiftKey && event.key.toLowerCase() === "z"));

export const isSave = (event) => (event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "s";
