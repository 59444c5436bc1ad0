// The classes: a legend that is also the buttons, and the search for those that have no key.

import { button, element, swatch } from "./dom.js";

/** A class's name with the letter of its key made strong. */
function name(entry) {
  const label = element("span", { class: "name" });
  if (entry.position === null || entry.position === undefined) {
    label.append(entry.name);
  } else {
    const end = entry.position + 1;
    label.append(entry.name.slice(0, entry.position), element("b", {}, entry.name.slice(entry.position, end)), entry.name.slice(end));
  }
  return label;
}

export class ClassButtons {
  /** Buttons for `classes` and those `extra` that are none; `pick(entry)` is called with the one that was pressed. */
  constructor(classes, pick, { toggles = false, extra = [] } = {}) {
    this.classes = classes;
    this.keys = new Map(classes.filter((entry) => entry.key).map((entry) => [entry.key.toLowerCase(), entry]));
    this.buttons = new Map();
    this.element = element("div", { class: "classes", role: "group", "aria-label": "Classes" });
    for (const entry of [...classes, ...extra]) {
      const key = entry.key ? element("kbd", { "aria-hidden": "true" }, entry.key.toUpperCase()) : null;
      const made = element(
        "button",
        { type: "button", class: "class", title: entry.name, "aria-keyshortcuts": entry.key, click: () => pick(entry) },
        swatch(entry.color), name(entry), key,
      );
      if (toggles) made.setAttribute("aria-pressed", "false");
      this.buttons.set(entry.number, made);
      this.element.append(made);
    }
    if (classes.some((entry) => !entry.key)) {
      const search = button("Search", () => chooseClass(classes, pick), { class: "class search" }, "/");
      this.element.prepend(search);
    }
  }

  byKey(key) {
    return key === null ? undefined : this.keys.get(key);
  }

  /** Marks the buttons of these class numbers as pressed. */
  press(numbers) {
    const wanted = new Set(numbers);
    for (const [number, made] of this.buttons) made.setAttribute("aria-pressed", String(wanted.has(number)));
  }

  search(pick) {
    chooseClass(this.classes, pick);
  }
}

function matches(classes, text) {
  const wanted = text.trim().toLowerCase();
  const rank = (entry) => {
    const at = entry.name.toLowerCase().indexOf(wanted);
    return at < 0 ? 2 : Number(at > 0);
  };
  return classes.filter((entry) => rank(entry) < 2).sort((one, other) => rank(one) - rank(other));
}

/** A search over the classes' names: type, arrow keys, Enter; Escape closes. */
function chooseClass(classes, pick) {
  let found = classes;
  let at = 0;
  const list = element("ul", { id: "found", class: "found", role: "listbox", "aria-label": "Classes found" });
  const input = element("input", {
    type: "text", role: "combobox", autocomplete: "off", spellcheck: "false", autofocus: true,
    "aria-expanded": "true", "aria-controls": "found", "aria-label": "Search a class by its name", placeholder: "Class name",
  });
  const dialog = element("dialog", { class: "search-dialog", "aria-label": "Search a class" }, input, list);

  function done(entry) {
    dialog.close();
    if (entry) pick(entry);
  }

  function render() {
    list.replaceChildren(...found.map((entry, index) => element(
      "li",
      { id: `found-${index}`, role: "option", "aria-selected": String(index === at), click: () => done(entry) },
      swatch(entry.color), entry.name,
    )));
    if (!found.length) list.append(element("li", { class: "none" }, "No class has this in its name."));
    input.setAttribute("aria-activedescendant", found.length ? `found-${at}` : "");
    list.children[at]?.scrollIntoView({ block: "nearest" });
  }

  input.addEventListener("input", () => {
    found = matches(classes, input.value);
    at = 0;
    render();
  });
  dialog.addEventListener("keydown", (event) => {
    event.stopPropagation();
    if (event.key === "ArrowDown") at = Math.min(at + 1, found.length - 1);
    else if (event.key === "ArrowUp") at = Math.max(at - 1, 0);
    else if (event.key === "Enter") done(found[at]);
    else return;
    event.preventDefault();
    render();
  });
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  render();
  dialog.showModal();
}
