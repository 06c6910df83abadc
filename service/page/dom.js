// Elements from data. Texts go in as text nodes and never as markup.

const SVG = "http://www.w3.org/2000/svg";

/** Make an element: `make("p", {class: "hint", dir: "auto"}, "text", child)`. */
export function make(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

/** The same for SVG. */
export function makeSvg(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value));
  element.append(...children); // strings become text nodes
  return element;
}
