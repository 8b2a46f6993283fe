
// Pages that change by themselves: the server sends a page whenever it has changed, and what differs is replaced, nothing else. So the
// focus, what is typed, selected and opened, and the place in the page stay. Without it the pages are as they were when they were loaded.

/** What only a reader changes: it stays whatever the server sends. */
const OWN = ['open', 'tabindex'];
const ASK_AGAIN_MS = 5000;

function isCopyButton(node) {
  return node.nodeType === Node.ELEMENT_NODE && node.matches('button.copy');
}

/** By what an element is known again at another place. */
function identity(node) {
  if (node.nodeType !== Node.ELEMENT_NODE) return '';
  return node.id || node.dataset?.copy || (node.matches('tr') && node.querySelector('td a')?.getAttribute('href')) || '';
}

const isSame = (one, other) => one.nodeName === other.nodeName && identity(one) === identity(other);

/** Makes `shown` as `sent` is. */
function renew(shown, sent) {
  if (shown.nodeType !== Node.ELEMENT_NODE) {
    if (shown.nodeValue !== sent.nodeValue) shown.nodeValue = sent.nodeValue;
    return;
  }
  for (const { name } of [...shown.attributes]) {
    if (!sent.hasAttribute(name) && !OWN.includes(name)) shown.removeAttribute(name);
  }
  for (const { name, value } of sent.attributes) {
    if (shown.getAttribute(name) !== value && !OWN.includes(name)) shown.setAttribute(name, value);
  }
  const old = [...shown.childNodes].filter((node) => !isCopyButton(node));
  for (const child of [...sent.childNodes]) {
    const found = old.findIndex((node) => isSame(node, child));
    const next = old[0] ?? null;
    if (found < 0) {
      shown.insertBefore(document.importNode(child, true), next);
      continue;
    }
    const [kept] = old.splice(found, 1);
    if (found > 0) shown.insertBefore(kept, next);
    renew(kept, child);
  }
  for (const node of old) node.remove();
}

function keepLive(live) {
  const state = element('span', { class: 'state', role: 'status' });
  document.querySelector('header').append(state);
  let events, later;

  function say(words, kind = '') {
    if (state.textContent !== words) state.textContent = words;
    state.className = `state ${kind}`;
  }

  function show(html) {
    const sent = new DOMParser().parseFromString(html, 'text/html').querySelector('[data-live]');
    if (!sent) return;
    const focused = document.activeElement;
    renew(live, sent);
    tellTimes();
    // What was moved has lost the focus.
    if (focused !== document.activeElement && focused?.isConnected) focused.focus({ preventScroll: true });
  }

  function stop() {
    clearTimeout(later);
    events?.close();
    events = undefined;
  }

  function start() {
    stop();
    // Whole, because the address that a relative one goes with may have a key in it.
    const page = encodeURIComponent(location.pathname + location.search);
    const own = new EventSource(`${location.origin}/events?page=${page}`);
    events = own;
    own.addEventListener('page', ({ data }) => {
      say('live', 'live');
      show(JSON.parse(data));
    });
    own.addEventListener('still', ({ data }) => {
      stop();
      say(JSON.parse(data));
    });
    own.addEventListener('open', () => say('live', 'live'));
    own.addEventListener('error', () => {
      if (own !== events) return;
      say('connection lost, trying again', 'lost');
      // A browser asks again by itself, unless the answer was a refusal.
      if (own.readyState === EventSource.CLOSED) later = setTimeout(start, ASK_AGAIN_MS);
    });
  }

  // A page that nobody sees holds no connection: a browser has few for each server.
  function follow() {
    if (document.hidden) {
      stop();
      say('paused');
    } else start();
  }
  document.addEventListener('visibilitychange', follow);
  addEventListener('pagehide', stop);
  addEventListener('pageshow', ({ persisted }) => persisted && follow());
  follow();
}

const live = document.querySelector('[data-live]');
if (live && 'EventSource' in window) keepLive(live);
