// Which pages there are: those that links lead to, and some that none does.

const SHAPES_MAX = 100;

/** Pages that need a query or show a mistake, with the status that they answer. */
const UNLINKED = [
  ['/explain?caller=dashboard&method=GET&target=%2Fapi%2Fv2%2Forganizations%2F13', 200],
  ['/explain?caller=provisioning&method=GET&target=%2Fapi%2Fv2%2Forganizations%2F11', 200],
  ['/audit?caller=nobody', 200],
  ['/audit/proof?seq=1', 200],
  ['/audit?limit=0', 400],
  ['/nothing', 404],
];

/** Two addresses have one shape if they differ only in ids and in values of parameters. */
function shape(address) {
  if (/^\/audit(\.\w+)?$/.test(address.pathname)) return address.pathname; // any fields of a record are its filters
  if (address.pathname.startsWith('/quota/ledger')) return `${address.pathname}?by=${address.searchParams.get('by')}`;
  const path = address.pathname.replace(/\/(\d+|[0-9a-f]{8}-[0-9a-f-]{27})(?=\/|$)/g, '/*');
  return `${path}?${[...new Set(address.searchParams.keys())].sort().join('&')}`;
}

export class Visitor {
  constructor(demo) {
    this.demo = demo;
    this.origin = demo.operator;
    const basic = Buffer.from(`me:${demo.operator_key}`).toString('base64');
    this.authorization = { authorization: `Basic ${basic}` };
  }

  async #open(path) {
    const response = await fetch(this.origin + path, {
      headers: { ...this.authorization, accept: 'text/html' },
      redirect: 'manual',
    });
    const isPage = response.headers.get('content-type')?.startsWith('text/html');
    // What is no page may have no end.
    const text = isPage ? await response.text() : (await response.body?.cancel(), '');
    return { status: response.status, isPage, text };
  }

  /** The paths of the menu. */
  async menu() {
    const { text } = await this.#open('/');
    return links(text.split('<nav')[1]?.split('</nav>')[0] ?? '');
  }

  /** Every page that is reached by links from `/`, one for each shape, and the unlinked ones. `broken`: what links lead to nothing. */
  async discover() {
    const [pages, broken, seen] = [[], [], new Set()];
    const queue = ['/', ...UNLINKED.map(([path]) => path)];
    while (queue.length > 0) {
      const path = queue.shift();
      const unlinked = UNLINKED.find(([known]) => known === path);
      const kind = unlinked ? path : shape(new URL(path, this.origin));
      if (seen.has(kind)) continue;
      seen.add(kind);
      if (seen.size > SHAPES_MAX) throw new Error(`more than ${SHAPES_MAX} kinds of pages: ${[...seen].join(' ')}`);
      const { status, isPage, text } = await this.#open(path);
      if (status !== (unlinked?.[1] ?? 200)) broken.push(`${path} answers ${status}`);
      if (!isPage) continue;
      pages.push({ path, status });
      for (const link of links(text)) {
        const address = new URL(link, this.origin + path);
        if (address.origin !== this.origin) broken.push(`${path} links to ${address.origin}`);
        else queue.push(address.pathname + address.search);
      }
    }
    return { pages, broken };
  }
}

/** The targets of the links in a text of HTML. */
function links(html) {
  const decoded = (text) => text.replaceAll('&amp;', '&').replaceAll('&quot;', '"');
  return [...html.matchAll(/<a\b[^>]*?\shref="([^"]*)"/g)].map(([, href]) => decoded(href));
}
