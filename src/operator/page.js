// Keys, copy buttons, and times that go on. Everything on the pages works without them.
'use strict';

const KEYS = [
  ['/', 'search'],
  ['j, k', 'next row, row before'],
  ['Enter', 'open the row'],
  ['Esc', 'leave a field, close this'],
  ['?', 'show these keys'],
];

const main = document.querySelector('main');

/** An element with attributes and children. */
function element(name, attributes, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

// By the server's clock: the reader's may be wrong.
const ahead = Number(document.body.dataset.now) - Date.now();

/** How long ago a time was, or how soon it comes, in the server's words. */
function ago(at) {
  const seconds = Math.trunc((Date.now() + ahead - at) / 1000);
  const length = Math.abs(seconds);
  if (length === 0) return 'now';
  if (length >= 30 * 86400) return new Date(at).toISOString().slice(0, 10);
  const units = [[172800, 86400, 'd'], [3600, 3600, 'h'], [60, 60, 'min'], [1, 1, 's']];
  const [, size, unit] = units.find(([from]) => length >= from);
  const told = `${Math.trunc(length / size)} ${unit}`;
  return seconds > 0 ? `${told} ago` : `in ${told}`;
}

function tellTimes() {
  for (const time of document.querySelectorAll('time.ago')) {
    const told = ago(Date.parse(time.dateTime));
    if (time.firstChild.nodeValue !== told) time.firstChild.nodeValue = told;
  }
}

async function copy(text) {
  // The clipboard is there only over TLS and on localhost.
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const field = element('textarea', { readonly: '', class: 'away' });
  field.value = text;
  document.body.append(field);
  field.select();
  document.execCommand('copy');
  field.remove();
}

function addCopyButtons(root) {
  for (const place of root.querySelectorAll('[data-copy]:not(:has(> button))')) {
    const button = element('button', { type: 'button', class: 'copy', 'aria-label': `Copy ${place.dataset.copy}` }, 'copy');
    button.addEventListener('click', async () => {
      await copy(place.dataset.copy);
      button.textContent = 'copied';
      setTimeout(() => (button.textContent = 'copy'), 1500);
    });
    place.append(button);
  }
}

function search() {
  const field = main.querySelector('form[method=get] :is(input:not([type=hidden]), select)');
  if (field) field.focus();
  else location.assign('/audit#search');
}

/** Moves the focus `step` rows on, through all tables of the page. */
function moveRow(step) {
  const rows = [...main.querySelectorAll('tbody tr')];
  if (rows.length === 0) return;
  const at = rows.indexOf(document.activeElement?.closest('tbody tr'));
  const next = at < 0 && step < 0 ? rows.length - 1 : Math.min(Math.max(at + step, 0), rows.length - 1);
  rows[next].tabIndex = -1;
  rows[next].focus();
}

let help;

function showHelp() {
  if (!help) {
    const rows = KEYS.flatMap(([key, what]) => [element('dt', {}, element('kbd', {}, key)), element('dd', {}, what)]);
    const close = element('button', { autofocus: '' }, 'Close');
    const form = element('form', { method: 'dialog' }, close);
    help = element('dialog', { 'aria-label': 'Keys' }, element('h2', {}, 'Keys'), element('dl', {}, ...rows), form);
    document.body.append(help);
  }
  if (!help.open) help.showModal();
}

const ACTIONS = { '/': search, j: () => moveRow(1), k: () => moveRow(-1), '?': showHelp };

document.addEventListener('keydown', (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || help?.open) return;
  const target = event.target;
  if (target.closest('input, select, textarea')) {
    if (event.key === 'Escape') target.blur();
    return;
  }
  if (event.key === 'Enter' && target.matches('tbody tr')) {
    target.querySelector('[data-copy] a, a')?.click();
  } else if (ACTIONS[event.key]) {
    event.preventDefault();
    ACTIONS[event.key]();
  }
});

addCopyButtons(document);
if (document.body.dataset.now) setInterval(tellTimes, 1000);
// Rows that come later get their buttons, too.
new MutationObserver((changes) => {
  for (const node of changes.flatMap((change) => [...change.addedNodes])) {
    if (node.nodeType === Node.ELEMENT_NODE) addCopyButtons(node);
  }
}).observe(main, { childList: true, subtree: true });
if (location.hash === '#search') search();

const hint = element('button', { type: 'button', class: 'hint' }, element('kbd', {}, '?'), ' keys');
hint.addEventListener('click', showHelp);
document.querySelector('header').append(hint);
