// What is wrong with the page that is shown. Each function runs in the page and returns sentences.

/** What is cut off at the window's edge, clipped by its own box, or spills over it. */
export function cutParts() {
  const found = [];
  const root = document.documentElement;
  const name = (element) => {
    const text = (element.textContent || element.value || '').trim().replace(/\s+/g, ' ').slice(0, 40);
    const classes = [...element.classList].map((word) => `.${word}`).join('');
    return `<${element.localName}${classes}> ${JSON.stringify(text)}`;
  };
  const scrolls = (element) => ['auto', 'scroll'].includes(getComputedStyle(element).overflowX);
  const isInScrollBox = (element) => {
    for (let box = element.parentElement; box && box !== document.body; box = box.parentElement) {
      if (scrolls(box)) return true;
    }
    return false;
  };
  if (root.scrollWidth > root.clientWidth) {
    found.push(`the page is ${root.scrollWidth} px wide in a window of ${root.clientWidth}`);
  }
  for (const element of document.body.querySelectorAll('*')) {
    const style = getComputedStyle(element);
    const box = element.getBoundingClientRect();
    const isSeen = box.width > 1 && box.height > 1 && style.visibility !== 'hidden';
    if (!isSeen || element.closest('svg')) continue;
    if (!isInScrollBox(element) && (box.left < -1 || box.right > root.clientWidth + 1)) {
      found.push(`${name(element)} reaches from ${box.left.toFixed()} to ${box.right.toFixed()} px`);
    }
    const isTooSmall = element.clientWidth > 0 && element.scrollWidth > element.clientWidth + 1;
    if (!isTooSmall || element.matches('input, select')) continue;
    if (!scrolls(element)) {
      const isTold = style.textOverflow === 'ellipsis' && (element.title || element.querySelector('[title]'));
      if (!isTold) found.push(`${name(element)} is wider than its box: ${element.scrollWidth} in ${element.clientWidth} px`);
    } else if (element.tabIndex < 0) {
      found.push(`${name(element)} scrolls, but not by keyboard`);
    }
  }
  return found;
}

/** Links without text, images without one, and headings that are missing. */
export function namelessParts() {
  const found = [];
  for (const link of document.querySelectorAll('a[href], button')) {
    const text = link.textContent.trim() || link.getAttribute('aria-label');
    if (!text) found.push(`a link or button has no text: ${link.outerHTML.slice(0, 80)}`);
  }
  if (document.querySelectorAll('h1').length !== 1) found.push('there is not exactly one h1');
  if (!document.title) found.push('there is no title');
  return found;
}

/** Numbers that do not stand to the right, times without their whole form, and ids that lead nowhere. */
export function untidyCells() {
  const found = [];
  const isCard = window.innerWidth <= 768;
  const quantity = /^[\d.]+( ?(µs|ms|s|min|h|B|[KMG]iB|%))?$/;
  const columns = new Map();
  for (const cell of document.querySelectorAll('td[data-label]')) {
    const table = cell.closest('table');
    if (!columns.has(table)) columns.set(table, new Map());
    const cells = columns.get(table).get(cell.dataset.label) ?? [];
    columns.get(table).set(cell.dataset.label, [...cells, cell]);
  }
  for (const [label, cells] of [...columns.values()].flatMap((table) => [...table])) {
    const isName = label === 'status' || cells.some((cell) => cell.querySelector('a'));
    const isQuantity = cells.every((cell) => quantity.test(cell.textContent.trim()));
    if (isQuantity && !isName && !isCard && getComputedStyle(cells[0]).textAlign !== 'right') {
      found.push(`numbers are not at the right: ${label}`);
    }
  }
  for (const paragraph of document.querySelectorAll('p, dd, li')) {
    const time = paragraph.textContent.match(/\d{4}-\d\d-\d\dT\d\d:\d\d\S*/);
    if (time) found.push(`a time is not short: ${time[0]}`);
  }
  for (const cell of document.querySelectorAll('td')) {
    const text = cell.textContent.trim();
    if (/^\d{4}-\d\d-\d\dT\d\d:\d\d\S*$/.test(text)) found.push(`a time is not short: ${text}`);
    if (/^[0-9a-f]{8}-[0-9a-f-]{27}$/.test(text) && !cell.querySelector('a')) found.push(`an id leads nowhere: ${text}`);
  }
  for (const id of document.querySelectorAll('.id')) {
    const isWhole = id.dataset.copy && id.querySelector('a')?.getAttribute('href').startsWith('/audit/record?request=');
    if (!isWhole) found.push(`an id does not lead to its request: ${id.textContent}`);
  }
  for (const time of document.querySelectorAll('time')) {
    if (!time.dateTime || !time.title) found.push(`a time lacks its whole form: ${time.textContent}`);
  }
  return found;
}

/** Where the keyboard's focus is, or null if it left the page. */
export function focus() {
  const element = document.activeElement;
  if (!element || element === document.body || element === document.documentElement) return null;
  const style = getComputedStyle(element);
  const box = element.getBoundingClientRect();
  const hasOutline = style.outlineStyle !== 'none' && Number.parseFloat(style.outlineWidth) >= 2;
  const isInWindow = box.bottom > 0 && box.top < window.innerHeight && box.right > 0 && box.left < window.innerWidth;
  const name = `<${element.localName}> ${JSON.stringify((element.textContent || element.name || '').trim().slice(0, 30))}`;
  return { name, isVisible: hasOutline && isInWindow, id: [...document.querySelectorAll('*')].indexOf(element) };
}
