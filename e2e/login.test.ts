import assert from 'node:assert/strict';
import { generateKeyPairSync } from 'node:crypto';
import http from 'node:http';
import type { AddressInfo } from 'node:net';
import { after, before, describe, it } from 'node:test';
import { Provider } from 'oidc-provider';
import { TestAuthority } from './support/certificates.ts';
import { type Answer, call, until } from './support/http.ts';
import { type RunningProxy, service, TestMesh } from './support/mesh.ts';

const accessTokenSeconds = 2;
const base64 = (text: string) => Buffer.from(text).toString('base64');

const api = (name: string, issuer: string, login: string) => `
apiVersion: mizzen.dev/v1alpha1
kind: Api
metadata: { name: ${name} }
spec:
  hosts: [${name}.example]
  placement: edge
  gateways: [ingress]
  upstream: { service: echo }
  policies:
    login:
      issuer: ${issuer}
      clientId: ${name}
      cookieSecret: { name: login, key: cookies }
      ${login}
---
`;

/** What a browser is for a login: it keeps cookies by host and goes where it is sent. */
class Browser {
  readonly #ports: Readonly<Record<string, number>>;
  readonly cookies: Map<string, Map<string, string>>;
  /** Set-Cookie lines, as they came. */
  readonly lines: string[];

  constructor(ports: Readonly<Record<string, number>>) {
    this.#ports = ports;
    this.cookies = new Map();
    this.lines = [];
  }

  async get(url: string, headers: Readonly<Record<string, string>> = { accept: 'text/html' }, form?: string): Promise<Answer> {
    const { host, pathname, search } = new URL(url);
    const jar = this.cookies.get(host) ?? new Map<string, string>();
    this.cookies.set(host, jar);
    const cookie = [...jar].map(([name, value]) => `${name}=${value}`).join('; ');
    const answer = await call({
      port: this.#ports[host] ?? assert.fail(`nobody is ${host}`),
      path: pathname + search,
      headers: {
        host,
        ...headers,
        ...(cookie === '' ? {} : { cookie }),
        ...(form === undefined ? {} : { 'content-type': 'application/x-www-form-urlencoded' }),
      },
      ...(form === undefined ? {} : { method: 'POST', body: form }),
    });
    for (const line of answer.headers['set-cookie'] ?? []) {
      this.lines.push(line);
      const [, name = '', value = ''] = /^([^=]+)=([^;]*)/.exec(line) ?? [];
      if (/; *max-age=0|expires=Thu, 01 Jan 1970/i.test(line)) jar.delete(name);
      else jar.set(name, value);
    }
    return answer;
  }

  /** Follows until there is a page; logs in and consents where the provider asks. */
  async visit(url: string, user = 'alice'): Promise<Answer & { readonly url: string; readonly stops: readonly string[] }> {
    const stops: string[] = [];
    for (let at = url, form: string | undefined; ; ) {
      const answer = await this.get(at, { accept: 'text/html' }, form);
      form = undefined;
      stops.push(at);
      assert.ok(stops.length < 30, stops.join('\n'));
      const { location } = answer.headers;
      const action = /<form[^>]* action="([^"]+)"/.exec(answer.body)?.[1];
      if (answer.status >= 300 && answer.status < 400 && location !== undefined) at = new URL(location, at).href;
      else if (/name="prompt" value="login"/.test(answer.body)) [at, form] = [new URL(action!, at).href, `prompt=login&login=${user}&password=x`];
      else if (/name="prompt" value="consent"/.test(answer.body)) [at, form] = [new URL(action!, at).href, 'prompt=consent'];
      else return { ...answer, url: at, stops };
    }
  }

  sessionLines(): string[] {
    return this.lines.filter((line) => /^(?:__Host-)?mizzen-session-/.test(line));
  }
}

describe('people log in at the gateway', () => {
  let mesh: TestMesh;
  let gateway: RunningProxy;
  let port: number;
  let tlsPort: number;
  let issuer: string;
  let providerServer: http.Server;
  let ports: Record<string, number>;
  /** The provider does not know them any more. */
  const dismissed = new Set<string>();
  let revoked = 0;
  before(async () => {
    mesh = await TestMesh.start();
    providerServer = http.createServer();
    await new Promise<void>((resolve) => providerServer.listen(0, '127.0.0.1', resolve));
    const providerPort = (providerServer.address() as AddressInfo).port;
    issuer = `http://127.0.0.1:${providerPort}`;
    const client = (name: string, more: object) => ({
      client_id: name,
      redirect_uris: [`http://${name}.example/oauth2/callback`],
      post_logout_redirect_uris: [`http://${name}.example/`],
      grant_types: ['authorization_code', 'refresh_token'],
      ...more,
    });
    const key = { ...generateKeyPairSync('rsa', { modulusLength: 2048 }).privateKey.export({ format: 'jwk' }), kid: 'one', use: 'sig', alg: 'RS256' };
    const provider = new Provider(issuer, {
      clients: [
        client('shop', { client_secret: 'an open secret: 100%' }),
        client('public', { token_endpoint_auth_method: 'none' }),
        client('long', { client_secret: 'secret' }),
      ],
      jwks: { keys: [key] },
      cookies: { keys: ['of the provider'] },
      features: { revocation: { enabled: true } },
      claims: { openid: ['sub'], email: ['email'], profile: ['name', 'groups'] },
      pkce: { required: () => true },
      issueRefreshToken: async (_context, { clientId }) => clientId === 'shop',
      ttl: { AccessToken: accessTokenSeconds, Session: 3600, Grant: 3600, IdToken: 3600, Interaction: 600, RefreshToken: 3600 },
      findAccount: (_context, accountId) =>
        dismissed.has(accountId)
          ? undefined
          : {
              accountId,
              claims: () => ({
                ...{ sub: accountId, email: `${accountId}@example.org`, name: 'A. L.' },
                groups: ['gold', 'x'.repeat(accountId === 'verbose' ? 20_000 : 1)],
              }),
            },
    });
    providerServer.on('request', provider.callback());
    provider.on('refresh_token.destroyed', () => revoked++);
    [port, tlsPort] = [await mesh.ports.next(), await mesh.ports.next()];
    const authority = new TestAuthority(mesh.home);
    const { cert, key: serverKey } = authority.issue('server', ['DNS:public.example']);
    gateway = await mesh.proxy('gateway', { type: 'gateway' });
    await mesh.workload('echo');
    await mesh.apply(
      `${service('echo')}
apiVersion: v1
kind: Secret
metadata: { name: login }
data: { cookies: ${base64('0123456789abcdef0123456789abcdef')}, client: ${base64('an open secret: 100%\n')}, secret: ${base64('secret')} }
---
apiVersion: v1
kind: Secret
metadata: { name: server }
type: kubernetes.io/tls
data: { tls.crt: ${base64(authority.pem(cert))}, tls.key: ${base64(authority.pem(serverKey))} }
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: { name: ingress }
spec:
  selector: { app: gateway }
  servers:
  - { port: { number: ${port}, name: http, protocol: HTTP }, hosts: ["*"] }
  - { port: { number: ${tlsPort}, name: https, protocol: HTTPS }, hosts: ["*"], tls: { mode: SIMPLE, credentialName: server } }
---
${api('shop', issuer, 'clientSecret: { name: login, key: client }, claimToHeader: { email: x-user-email, name: x-user-name }, forwardAccessToken: true'.replaceAll(/, (?=claim|forward)/g, '\n      '))}
${api('public', issuer, 'claimToHeader: { email: x-user-email }')}
${api('long', issuer, 'clientSecret: { name: login, key: secret }\n      claimToHeader: { groups: x-groups }')}
${api('lost', 'http://127.0.0.1:9', '')}`,
    );
    ports = { 'shop.example': port, 'public.example': port, 'long.example': port, 'lost.example': port, [`127.0.0.1:${providerPort}`]: providerPort };
    await until(
      'the gateway to ask for a login',
      () => call({ port, headers: { host: 'lost.example' } }),
      ({ status }) => status === 401,
    );
  });
  after(async () => {
    await mesh?.close();
    providerServer?.closeAllConnections();
    providerServer?.close();
  });

  const seenBy = (answer: Answer) => (JSON.parse(answer.body) as { readonly headers: Record<string, string>; readonly url: string }) ?? {};

  it('sends a browser to the provider and back to where it wanted to be, and tells the service who it is', async () => {
    const browser = new Browser(ports);
    const page = await browser.visit('http://shop.example/cart?item=1&x=%2F');
    assert.equal(page.status, 200, page.body);
    assert.equal(page.url, 'http://shop.example/cart?item=1&x=%2F');
    const { headers } = seenBy(page);
    assert.deepEqual([headers['x-mizzen-consumer'], headers['x-user-email'], headers['x-user-name']], [`${issuer}#alice`, 'alice@example.org', 'A. L.']);
    assert.match(String(headers['authorization']), /^Bearer \S+/);
    assert.equal(headers['cookie'], undefined, 'the session is not for the service');
    const begun = new URL(page.stops[1]!);
    assert.equal(begun.searchParams.get('code_challenge_method'), 'S256');
    for (const line of browser.lines.filter((cookie) => cookie.startsWith('mizzen-'))) assert.match(line, /; Path=\/; HttpOnly; SameSite=Lax/);
    for (const line of browser.lines) assert.doesNotMatch(line, /alice@|Bearer/);
    // Other cookies stay, and nobody tells the service who they are by themselves.
    browser.cookies.get('shop.example')!.set('theme', 'dark');
    const again = seenBy(await browser.get('http://shop.example/', { 'x-user-email': 'root@example.org', 'x-mizzen-consumer': 'root' })).headers;
    assert.deepEqual([again['cookie'], again['x-user-email'], again['x-mizzen-consumer']], ['theme=dark', 'alice@example.org', `${issuer}#alice`]);
  });

  it('says 401 to who is no browser, and lets nobody in with a cookie of his own making', async () => {
    const answer = await call({ port, headers: { host: 'shop.example', 'x-user-email': 'root@example.org' } });
    assert.equal(answer.status, 401);
    assert.match(answer.body, /nobody is logged in/);
    const script = await call({ port, headers: { host: 'shop.example', accept: 'text/html', 'sec-fetch-mode': 'cors' } });
    assert.equal(script.status, 401);
    const browser = new Browser(ports);
    await browser.visit('http://public.example/');
    const [name, value] = [...browser.cookies.get('public.example')!].find(([cookie]) => cookie.startsWith('mizzen-session-'))!;
    // Another API's session, one that was changed, and one that is none.
    await browser.get('http://shop.example/');
    const [login] = [...browser.cookies.get('shop.example')!];
    const mark = /mizzen-login-(\w+)-/.exec(login![0])![1];
    for (const cookie of [`mizzen-session-${mark}=${value}`, `mizzen-session-${mark}=${login![1]}`, `mizzen-session-${mark}=${'A'.repeat(200)}`, `${name}=`])
      assert.equal((await call({ port, headers: { host: 'shop.example', cookie } })).status, 401, cookie);
    const changed = `${value.slice(0, -2)}${value.endsWith('AA') ? 'BB' : 'AA'}`;
    assert.equal((await call({ port, headers: { host: 'public.example', cookie: `${name}=${changed}` } })).status, 401);
    assert.equal((await call({ port, headers: { host: 'public.example', cookie: `${name}=${value}` } })).status, 200);
  });

  it('finishes no login that was not begun in this browser', async () => {
    const mine = new Browser(ports);
    const begun = await mine.get('http://public.example/');
    const state = new URL(begun.headers.location!).searchParams.get('state')!;
    const callback = (parameters: string) => `http://public.example/oauth2/callback?${parameters}`;
    const theirs = new Browser(ports);
    for (const [browser, parameters, status, text] of [
      [theirs, `state=${state}&code=x`, 400, /not begun in this browser/],
      [mine, 'code=x', 400, /not begun in this browser/],
      [mine, `state=${state.slice(0, 8)}&code=x`, 400, /not begun in this browser/],
      [mine, `state=${state}&code=x&iss=http://evil.example`, 400, /another provider/],
      [mine, `state=${state}&error=access_denied&iss=${encodeURIComponent(issuer)}`, 403, /let nobody in: access_denied/],
      [mine, `state=${state}&code=x&iss=${encodeURIComponent(issuer)}`, 403, /the login was refused: the token endpoint answered 400 invalid_grant/],
    ] as const) {
      const answer = await browser.get(callback(parameters));
      assert.equal(answer.status, status, answer.body);
      assert.match(answer.body, text);
    }
    assert.deepEqual([...mine.sessionLines(), ...theirs.sessionLines()], []);
  });

  it('leads nowhere else, whatever was asked for', async () => {
    const browser = new Browser(ports);
    const page = await browser.visit('http://public.example//evil.example/%2e%2e');
    assert.equal(new URL(page.url).host, 'public.example');
    assert.equal(page.status, 200);
  });

  it('renews what has ended with the refresh token, once for many requests, and asks for a login when the provider says no', async () => {
    const browser = new Browser(ports);
    await browser.visit('http://shop.example/');
    const first = seenBy(await browser.get('http://shop.example/')).headers['authorization'];
    const cookies = [...browser.cookies.get('shop.example')!].map(([name, value]) => `${name}=${value}`).join('; ');
    const ask = () => call({ port, headers: { host: 'shop.example', cookie: cookies } });
    await until(
      'a new access token',
      async () => seenBy(await ask()).headers['authorization'],
      (token) => token !== first,
    );
    const many = await Promise.all(Array.from({ length: 10 }, ask));
    assert.deepEqual([...new Set(many.map(({ status }) => status))], [200]);
    const renewed = many[0]!.headers['set-cookie']!.map((line) => line.split(';')[0]!).join('; ');
    await call({ port, path: '/', headers: { host: 'shop.example', cookie: renewed } });
    const { body } = await call({ port: gateway.adminPort, path: '/stats/prometheus' });
    assert.match(body, /mizzen_logins_total\{result="refreshed"\} /);
    const mallory = new Browser(ports);
    await mallory.visit('http://shop.example/', 'mallory');
    dismissed.add('mallory');
    const answer = await until(
      'the refresh to be refused',
      () => mallory.get('http://shop.example/'),
      ({ status }) => status === 302,
    );
    assert.equal(new URL(answer.headers.location!).origin, issuer);
    assert.equal((await mallory.get('http://shop.example/', {})).status, 401);
  });

  it('logs out here and at the provider', async () => {
    const browser = new Browser(ports);
    await browser.visit('http://public.example/');
    assert.equal((await browser.get('http://public.example/')).status, 200);
    const copied = new Map(browser.cookies.get('public.example')!);
    const out = await browser.get('http://public.example/oauth2/logout');
    const { origin, pathname, searchParams } = new URL(out.headers.location!);
    assert.deepEqual([origin, pathname, searchParams.get('client_id')], [issuer, '/session/end', 'public']);
    assert.equal(searchParams.get('post_logout_redirect_uri'), 'http://public.example/');
    assert.equal((await browser.get('http://public.example/', {})).status, 401);
    for (const [cookie, value] of copied) browser.cookies.get('public.example')!.set(cookie, value);
    assert.equal((await browser.get('http://public.example/', {})).status, 401, 'a copy of the cookie has ended with the session');
    assert.match(searchParams.get('id_token_hint')!, /^ey[\w-]+\.[\w-]+\.[\w-]+$/, 'the provider need not ask whose session it is');
  });

  it('revokes the refresh token at logout, so that no other gateway can refresh a copy of the session', async () => {
    const browser = new Browser(ports);
    await browser.visit('http://shop.example/');
    const before = revoked;
    await browser.get('http://shop.example/oauth2/logout');
    await until(
      'the token is revoked',
      async () => revoked,
      (count) => count > before,
    );
  });

  it('accepts the session of one Api at no other, whatever the cookie is called', async () => {
    const [one, other] = [new Browser(ports), new Browser(ports)];
    await one.visit('http://public.example/');
    await other.visit('http://shop.example/');
    const cookieOf = (browser: Browser, host: string) => [...browser.cookies.get(host)!].find(([name]) => name.startsWith('mizzen-session-'))!;
    const [name] = cookieOf(other, 'shop.example');
    const [, value] = cookieOf(one, 'public.example');
    const thief = new Browser(ports);
    thief.cookies.set('shop.example', new Map([[name, value]]));
    assert.equal((await thief.get('http://shop.example/', {})).status, 401);
    assert.equal((await other.get('http://shop.example/', {})).status, 200);
  });

  it('refuses an answer without iss of a provider that always names itself', async () => {
    const browser = new Browser(ports);
    const begun = await browser.get('http://public.example/', { accept: 'text/html' });
    const state = new URL(begun.headers.location!).searchParams.get('state');
    const answer = await browser.get(`http://public.example/oauth2/callback?code=stolen&state=${state}`);
    assert.equal(answer.status, 400);
    assert.match(answer.body, /another provider/);
  });

  it('says what does not work: a provider that is not there, claims that fit into no cookie, settings that make no sense', async () => {
    const lost = await new Browser(ports).get('http://lost.example/');
    assert.equal(lost.status, 503);
    assert.match(lost.body, /the OpenID provider cannot be used/);
    const long = await new Browser(ports).visit('http://long.example/', 'verbose');
    assert.equal(long.status, 502, long.body);
    assert.match(long.body, /does not fit into cookies/);
    await assert.rejects(
      mesh.apply(api('bad', 'nowhere', 'callbackPath: there')),
      /spec\.policies\.login\.issuer: "nowhere" is no issuer.*|spec\.policies\.login\.callbackPath/s,
    );
  });

  it('with TLS takes only cookies that no other host and no plain page can have set', async () => {
    const ask = (headers: Readonly<Record<string, string>>) =>
      call({ port: tlsPort, headers: { host: 'public.example', ...headers }, tls: { rejectUnauthorized: false } });
    const begun = await ask({ accept: 'text/html' });
    assert.match(String(begun.headers['set-cookie']), /^__Host-mizzen-login-\w+-[\w-]{8}=[\w-]+; Path=\/; HttpOnly; SameSite=Lax; Secure; Max-Age=600$/);
    assert.equal(new URL(begun.headers.location!).searchParams.get('redirect_uri'), 'https://public.example/oauth2/callback');
    const browser = new Browser(ports);
    await browser.visit('http://public.example/');
    const [name, value] = [...browser.cookies.get('public.example')!].find(([cookie]) => cookie.startsWith('mizzen-session-'))!;
    assert.equal((await ask({ cookie: `${name}=${value}` })).status, 401);
    assert.equal((await ask({ cookie: `__Host-${name}=${value}` })).status, 200);
  });

  it('shows nobody its secrets', async () => {
    const { body } = await call({ port: gateway.adminPort, path: '/config_dump' });
    assert.match(body, /mizzen\.filters\.http\.login/);
    assert.doesNotMatch(body, /0123456789abcdef|an open secret/);
  });
});
