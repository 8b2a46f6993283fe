// What people do on the pages: keys, copying, and forms without script.

import { makeTraffic } from './demo.mjs';
import { contextFor } from './visit.mjs';

const WIDE = { width: 1280, scheme: 'light', script: true };

/** Each act with its name. It throws if the page does not do what it should. */
export const ACTS = [
  ['/ leads to the search, and Esc out of it', WIDE, async (page, origin) => {
    await page.goto(`${origin}/config`);
    await page.keyboard.press('/');
    await page.waitForURL(`${origin}/audit#search`);
    const isInForm = () => page.evaluate(() => document.activeElement.closest('form') !== null);
    await until('the focus is in the form', isInForm);
    await page.keyboard.press('Escape');
    await until('the focus has left the form', async () => !(await isInForm()));
  }],
  ['j and k go through rows, Enter opens one', WIDE, async (page, origin) => {
    await page.goto(`${origin}/audit?kind=request`);
    const row = () => page.evaluate(() => [...document.querySelectorAll('tbody tr')].indexOf(document.activeElement));
    for (const [key, expected] of [['j', 0], ['j', 1], ['j', 2], ['k', 1]]) {
      await page.keyboard.press(key);
      expect(`row after ${key}`, await row(), expected);
    }
    await page.keyboard.press('Enter');
    await page.waitForURL((address) => address.href !== `${origin}/audit?kind=request`);
  }],
  ['? shows the keys, Esc closes them', WIDE, async (page, origin) => {
    await page.goto(origin);
    await page.keyboard.press('?');
    const isOpen = () => page.evaluate(() => document.querySelector('dialog')?.open ?? false);
    expect('the keys are shown', await isOpen(), true);
    await page.keyboard.press('Escape');
    expect('the keys are still shown', await isOpen(), false);
  }],
  ['keys are letters in a field', WIDE, async (page, origin) => {
    await page.goto(`${origin}/audit`);
    await page.locator('input[name=request]').focus();
    await page.keyboard.type('j/k?');
    expect('the field', await page.locator('input[name=request]').inputValue(), 'j/k?');
  }],
  ['an id is copied whole', WIDE, async (page, origin) => {
    await page.context().grantPermissions(['clipboard-read', 'clipboard-write'], { origin });
    await page.goto(`${origin}/doubts`);
    const id = page.locator('[data-copy]').first();
    await id.locator('button').click();
    const copied = await page.evaluate(() => navigator.clipboard.readText());
    expect('the clipboard', copied, await id.getAttribute('data-copy'));
  }],
  ['a search works without script', { ...WIDE, script: false }, async (page, origin) => {
    await page.goto(`${origin}/audit`);
    await page.locator('select[name=caller]').selectOption('dashboard');
    await page.getByRole('button', { name: 'Search' }).click();
    expect('the parameter', new URL(page.url()).searchParams.get('caller'), 'dashboard');
  }],
  ['a purge works without script', { ...WIDE, script: false }, async (page, origin) => {
    await page.goto(`${origin}/cache?purge=org:15`);
    await page.getByRole('button', { name: 'Purge', exact: true }).click();
    await page.waitForURL((address) => address.searchParams.has('purged'));
  }],
  ['a page that was opened by an address with the key in it is live, and so are those that it leads to', { ...WIDE, key: false }, async (page, origin, demo) => {
    await page.goto(origin.replace('//', `//me:${demo.operator_key}@`));
    await isLive(page);
    await page.getByRole('link', { name: 'Quota', exact: true }).click();
    await page.waitForURL((address) => address.pathname === '/quota');
    await isLive(page);
  }],
  ['times go on while a page is seen', WIDE, async (page, origin) => {
    await page.clock.install();
    await page.goto(`${origin}/doubts`);
    await isLive(page);
    const told = () => page.locator('.doubt time.ago').first().textContent();
    const minutes = async () => Number((await told()).match(/^(\d+) min ago$/)?.[1] ?? 0);
    const before = await minutes();
    await page.clock.fastForward(5 * 60_000);
    await until('five minutes more', async () => [5, 6].includes((await minutes()) - before));
    await page.clock.fastForward(3 * 3600_000);
    await until('hours', async () => (await told()) === '3 h ago');
  }],
  ['a page changes without being loaded again, and what a reader does to it stays', WIDE, async (page, origin, demo) => {
    await page.goto(`${origin}/doubts`);
    await isLive(page);
    const doubts = await page.locator('.doubt').count();
    const note = page.locator('.doubt input[name=note]').first();
    await note.focus();
    await page.keyboard.type('I am not');
    await page.evaluate(() => (window.isTheSame = true));
    await makeTraffic(demo);
    await until('the new doubts are shown', async () => (await page.locator('.doubt').count()) > doubts);
    await page.keyboard.type(' done yet');
    expect('what is typed', await note.inputValue(), 'I am not done yet');
    expect('the page was not loaded again', await page.evaluate(() => window.isTheSame), true);
  }],
  ['new records come to the audit page below the same filters', WIDE, async (page, origin, demo) => {
    await page.goto(`${origin}/audit?caller=dashboard&kind=request&limit=5`);
    await isLive(page);
    const first = () => page.locator('tbody tr td').first().textContent();
    const [before, details] = [await first(), page.locator('details')];
    await details.locator('summary').click();
    await makeTraffic(demo);
    await until('a newer record is first', async () => (await first()) !== before);
    expect('the rows', await page.locator('tbody tr').count(), 5);
    expect('the filters are still open', await details.evaluate((element) => element.open), true);
  }],
  ['charts of the last hour are drawn', WIDE, async (page, origin) => {
    await page.goto(`${origin}/history`);
    await until('six charts', async () => (await page.locator('.chart svg[role=img]').count()) === 6);
  }],
  ['each quota is drawn with its limit', WIDE, async (page, origin) => {
    await page.goto(`${origin}/quota`);
    await until('a chart of an organization', async () => (await page.locator('#chart-quota-11 .line').count()) >= 4);
  }],
  ['a lost connection is told, and a page that comes back is live again', WIDE, async (page, origin) => {
    await page.route('**/events?*', (route) => route.abort());
    await page.goto(`${origin}/quota`);
    await until('it says so', async () => (await page.locator('.state').textContent()).startsWith('connection lost'));
    await page.unroute('**/events?*');
    await isLive(page);
  }],
];

const isLive = (page) => until('the page is live', async () => (await page.locator('.state').textContent()) === 'live');

/** Does them all, each on a page of its own. */
export async function act(browser, visitor, report) {
  for (const [name, condition, run] of ACTS) {
    const context = await contextFor(browser, condition, condition.key === false ? undefined : visitor.authorization);
    const wrong = [];
    try {
      await run(await context.newPage(), visitor.origin, visitor.demo);
    } catch (error) {
      wrong.push(error.message.split('\n')[0]);
    }
    await context.close();
    report(name, wrong);
  }
}

function expect(what, actual, expected) {
  if (actual !== expected) throw new Error(`${what}: ${JSON.stringify(actual)}, not ${JSON.stringify(expected)}`);
}

async function until(what, holds) {
  for (let tries = 0; tries < 400; tries++) {
    if (await holds()) return;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  throw new Error(`never: ${what}`);
}
