import { createHash, randomBytes } from 'node:crypto';
import { errorBoundary, MizzenError, messageOf } from '@mizzen/common';
import { FetchPolicy } from '@mizzen/common/fetch-policy';
import { LoginPerRouteSchema } from '@mizzen/envoy-api/gen/mizzen/http/v1/filters_pb.js';
import { queryValues } from '@mizzen/gateway';
import type { ProxyContext } from '../../http/connection-settings.ts';
import type { Consumer, Exchange } from '../../http/exchange.ts';
import { cookieNames, cookieValue, removeCookies } from '../../message/cookie.ts';
import { consumerHeader, groupsHeader } from '../../message/owned-headers.ts';
import type { RequestHead } from '../../message/request-head.ts';
import type { ResponseHead } from '../../message/response-head.ts';
import { subjectName } from '../authentication/credential-table.ts';
import type { FilterKind, HttpFilter } from '../filter.ts';
import { type NeedsSecrets, refuseWithoutSecret, secretNameOf } from '../generic-secrets.ts';
import { unpackConfig } from '../unpack-config.ts';
import { OpenIdProvider, RefusedByProvider, type Tokens } from './openid-provider.ts';
import { joinedCookie, SealedCookies, setCookies } from './sealed-cookies.ts';

const boundary = errorBoundary('login');

const name = 'mizzen.filters.http.login';
const loginSeconds = 600;
const maxLoginsAtOnce = 5;
const minCookieSecretBytes = 32;
const noSecret = Buffer.alloc(0);
const maxRemembered = 2_000;
/** Requests that came beside the one that refreshed still show the session before. */
const refreshedLivesMs = 30_000;

/** A login that has begun: in a cookie of the browser that began it. */
interface Begun {
  readonly state: string;
  readonly nonce: string;
  readonly verifier: string;
  readonly target: string;
  readonly endsAt: number;
}

/** Sessions that ended here by logout: a copy of their cookie is neither accepted nor refreshed. The oldest is forgotten first. */
const endedSessions = new Set<string>();
const maxEndedSessions = 100_000;
/** A longer ID token is not kept for the logout: cookies have room for 4 KiB each. */
const maxIdTokenBytes = 1_500;

function endSession(id: string): void {
  if (endedSessions.size >= maxEndedSessions) endedSessions.delete(endedSessions.values().next().value ?? '');
  endedSessions.add(id);
}

/** Who has logged in: in a cookie, too. Times in the milliseconds of Date.now(). */
interface Session {
  /** The same for its whole life, over refreshes. */
  readonly id: string;
  readonly claims: Readonly<Record<string, unknown>>;
  readonly endsAt: number;
  /** When the provider is asked again. */
  readonly refreshAt: number | undefined;
  readonly refreshToken: string | undefined;
  /** For the logout at the provider, which need not ask the user then. Absent when it is too long for a cookie. */
  readonly idToken?: string | undefined;
  readonly accessToken: string | undefined;
}

/**
 * mizzen.filters.http.login: end users log in at an OpenID provider (Core 1.0, authorization code flow with PKCE). What is known of them is in encrypted cookies:
 * any proxy of the mesh can go on where another began. A browser without a session is sent to log in; anything else gets 401.
 */
export const login: FilterKind = {
  name,
  create: (_any, _place, context) => new LoginFilter(context),
  compileRoute: (any, place) => new Login(unpackConfig(LoginPerRouteSchema, any, place), place),
};

class LoginFilter implements HttpFilter {
  readonly name = name;
  readonly #context: ProxyContext;

  constructor(context: ProxyContext) {
    this.#context = context;
  }

  onRequest(exchange: Exchange): 'continue' | 'stop' {
    const route = exchange.filterConfig(name) as Login | undefined;
    if (route === undefined) return 'continue';
    if (!route.takeSecrets(this.#context.genericSecret)) return refuseWithoutSecret(exchange, 'login');
    const { head } = exchange;
    for (const header of route.ownHeaders) head.headers.remove(header);
    const path = head.target.split('?', 1)[0]!;
    if (path === route.config.callbackPath) return this.#wait(exchange, route, this.#finish(exchange, route));
    if (path === route.config.logoutPath) return this.#wait(exchange, route, this.#end(exchange, route));
    const session = route.sessionOf(exchange);
    if (session === undefined) return this.#begin(exchange, route);
    if (session.refreshAt !== undefined && Date.now() >= session.refreshAt && session.refreshToken !== undefined)
      return this.#wait(exchange, route, this.#refresh(exchange, route, session));
    route.tell(exchange, session);
    return 'continue';
  }

  onResponse(exchange: Exchange, head: ResponseHead): void {
    for (const cookie of (exchange.note(name) as readonly string[] | undefined) ?? []) head.headers.add('set-cookie', cookie);
  }

  #wait(exchange: Exchange, route: Login, work: Promise<void>): 'stop' {
    const failed = exchange.later((error: unknown) => {
      if (error instanceof RefusedByProvider) return this.#deny(exchange, 403, 'refused', `the login was refused: ${error.message}`);
      this.#context.logger.warn(`logins for ${route.config.name}: ${messageOf(error)}`);
      this.#deny(exchange, 503, 'provider_unavailable', 'logins are not possible at the moment: the OpenID provider cannot be used');
    });
    work.catch(failed);
    return 'stop';
  }

  #begin(exchange: Exchange, route: Login): 'stop' {
    const { head } = exchange;
    if (!isNavigation(head)) {
      this.#deny(exchange, 401, 'no_session', 'nobody is logged in');
      return 'stop';
    }
    return this.#wait(
      exchange,
      route,
      (async () => {
        const [state, nonce, verifier] = [token(), token(), token()];
        const url = await route.provider.authorizationUrl({
          ...{ redirect_uri: `${originOf(exchange)}${route.config.callbackPath}`, scope: route.config.scopes.join(' '), state, nonce },
          ...(route.config.scopes.includes('offline_access') ? { prompt: 'consent' } : {}),
          ...{ code_challenge: createHash('sha256').update(verifier).digest('base64url'), code_challenge_method: 'S256' },
        });
        if (exchange.isOver) return;
        const begun: Begun = { state, nonce, verifier, target: head.target, endsAt: Date.now() + loginSeconds * 1_000 };
        // Each tab has its own; those that came to nothing are not to fill the browser.
        const prefix = loginCookie(exchange, route, '');
        const others = cookieNames(head.headers).filter((cookie) => cookie.startsWith(prefix));
        const stale = others.length < maxLoginsAtOnce ? [] : others;
        const sealed = route.cookies.seal('login', begun);
        this.#count('begun');
        redirect(exchange, url, [
          ...stale.map((cookie) => `${cookie}=; ${attributes(exchange)}; Max-Age=0`),
          `${loginCookie(exchange, route, state)}=${sealed}; ${attributes(exchange)}; Max-Age=${loginSeconds}`,
        ]);
      })(),
    );
  }

  /** Back from the provider. */
  async #finish(exchange: Exchange, route: Login): Promise<void> {
    const { head } = exchange;
    const parameter = (of: string) => queryValues(head.target, of)[0];
    const [state, code, problem, issuer] = [parameter('state'), parameter('code'), parameter('error'), parameter('iss')];
    const cookie = loginCookie(exchange, route, state ?? '');
    const begun = route.cookies.unseal('login', cookieValue(head.headers, cookie) ?? '') as Begun | undefined;
    // Whoever was led here by somebody else's link has begun no login.
    if (state === undefined || begun === undefined || begun.state !== state || Date.now() >= begun.endsAt)
      return this.#deny(exchange, 400, 'unknown_login', 'this login was not begun in this browser, or too long ago: start again at the page that you want');
    // RFC 9207: the answer of another provider.
    if (issuer !== undefined ? issuer !== route.config.issuer : await route.provider.namesIssuer())
      return this.#deny(exchange, 400, 'wrong_issuer', 'this is the answer of another provider');
    if (problem !== undefined || code === undefined)
      return this.#deny(exchange, 403, 'refused', `the provider let nobody in: ${(problem ?? 'no code').replace(/[^\x20-\x7e]/g, '').slice(0, 100)}`);
    const redirectUri = `${originOf(exchange)}${route.config.callbackPath}`;
    const tokens = await route.provider.exchange(code, begun.verifier, redirectUri, begun.nonce, Object.keys(route.config.claimToHeader));
    if (exchange.isOver) return;
    const cookies = route.sessionCookies(exchange, route.newSession(tokens, tokens.claims!));
    if (cookies === undefined) return this.#deny(exchange, 502, 'session_too_long', 'what the provider says of you does not fit into cookies');
    this.#count('finished');
    redirect(exchange, `${originOf(exchange)}${begun.target}`, [...cookies, `${cookie}=; ${attributes(exchange)}; Max-Age=0`]);
  }

  async #end(exchange: Exchange, route: Login): Promise<void> {
    const origin = originOf(exchange);
    const session = route.sessionOf(exchange);
    if (session !== undefined) {
      endSession(session.id);
      this.#revoke(route, session);
    }
    const gone = setCookies(sessionCookie(exchange, route), '', attributes(exchange), exchange.head.headers) ?? [];
    // Here the session ends, whether or not the provider can be reached.
    const url = await route.provider.endSessionUrl(`${origin}/`, session?.idToken).catch(() => undefined);
    if (exchange.isOver) return;
    this.#count('ended');
    redirect(exchange, url ?? `${origin}/`, gone);
  }

  /** The browser does not wait for it. */
  #revoke(route: Login, { refreshToken, accessToken }: Session): void {
    const token = refreshToken ?? accessToken;
    if (token === undefined) return;
    route.provider.revoke(token, refreshToken === undefined ? 'access_token' : 'refresh_token').catch((error: unknown) => {
      this.#context.logger.warn('cannot revoke the tokens of a session that was ended', { api: route.config.name, error: messageOf(error) });
    });
  }

  async #refresh(exchange: Exchange, route: Login, session: Session): Promise<void> {
    let fresh: Session;
    try {
      fresh = await route.refreshed(session);
    } catch (error) {
      if (!(error instanceof RefusedByProvider)) throw error;
      if (exchange.isOver) return;
      // The provider knows them no more: they log in again.
      this.#count('refresh_refused');
      this.#begin(exchange, route);
      return;
    }
    if (exchange.isOver) return;
    this.#count('refreshed');
    exchange.setNote(name, route.sessionCookies(exchange, fresh) ?? []);
    route.tell(exchange, fresh);
    exchange.resumeFilters();
  }

  #deny(exchange: Exchange, status: number, reason: string, detail: string): void {
    this.#context.counters.countRejection('login', reason);
    const title = { 400: 'Bad Request', 401: 'Unauthorized', 403: 'Forbidden', 502: 'Bad Gateway', 503: 'Service Unavailable' }[status] ?? '';
    exchange.replyProblem(status, { title, detail }, `login_${reason}`, [['cache-control', 'no-store']]);
  }

  #count(result: string): void {
    this.#context.counters.count(`logins_total{result="${result}"}`);
  }
}

type Config = ReturnType<typeof unpackConfig<typeof LoginPerRouteSchema>>;

/** What one API asks of its users. */
class Login implements NeedsSecrets {
  readonly config: Config;
  readonly provider: OpenIdProvider;
  readonly secretNames: readonly string[];
  /** In the names of cookies. */
  readonly mark: string;
  readonly ownHeaders: readonly string[];
  readonly #claimHeaders: readonly (readonly [claim: string, header: string])[];
  readonly #remembered: Map<string, Session>;
  readonly #refreshing: Map<string, Promise<Session>>;
  readonly #clientSecretName: string | undefined;
  readonly #cookieSecretName: string;
  #clientSecret: string;
  #clientSecretBytes: Buffer;
  #cookieSecret: Buffer | undefined;
  #cookies: SealedCookies | undefined;

  constructor(config: Config, place: string) {
    const { issuer, clientId, clientSecret, cookieSecret } = config;
    if (!URL.canParse(issuer) || clientId === '' || !config.callbackPath.startsWith('/'))
      throw new MizzenError('invalid-filter', `${place}: issuer (a URL), client_id and callback_path are needed`);
    this.config = config;
    this.#cookieSecretName = secretNameOf(cookieSecret, 'cookie_secret', place);
    this.#clientSecretName = clientSecret === undefined ? undefined : secretNameOf(clientSecret, 'client_secret', place);
    this.secretNames = this.#clientSecretName === undefined ? [this.#cookieSecretName] : [this.#cookieSecretName, this.#clientSecretName];
    this.#clientSecret = '';
    this.#clientSecretBytes = noSecret;
    this.#cookieSecret = undefined;
    this.#cookies = undefined;
    this.provider = new OpenIdProvider({ issuer, id: clientId, secret: () => this.#clientSecret, policy: new FetchPolicy(config.allowedFetchHosts) });
    this.mark = createHash('sha256').update(config.name).digest('hex').slice(0, 8);
    this.#claimHeaders = Object.entries(config.claimToHeader).map(([claim, header]) => [claim, header.toLowerCase()]);
    this.ownHeaders = [consumerHeader, groupsHeader, ...this.#claimHeaders.map(([, header]) => header)];
    this.#remembered = new Map();
    this.#refreshing = new Map();
  }

  /** Takes the secrets as they are now. Whether they are there, and a session can be sealed with them. */
  takeSecrets(secretOf: ProxyContext['genericSecret']): boolean {
    const cookieSecret = secretOf(this.#cookieSecretName);
    const clientSecret = this.#clientSecretName === undefined ? noSecret : secretOf(this.#clientSecretName);
    if (cookieSecret === undefined || clientSecret === undefined || cookieSecret.length < minCookieSecretBytes) return false;
    if (this.#clientSecretBytes !== clientSecret) {
      this.#clientSecretBytes = clientSecret;
      this.#clientSecret = clientSecret.toString('utf8');
    }
    if (this.#cookieSecret === cookieSecret) return true;
    const { issuer, clientId, name: ofApi } = this.config;
    this.#cookieSecret = cookieSecret;
    this.#cookies = new SealedCookies(cookieSecret.toString('utf8'), JSON.stringify([issuer, clientId, ofApi]));
    // Sessions that were sealed with the secret before are no longer good.
    this.#remembered.clear();
    return true;
  }

  /** Only after `takeSecrets`. */
  get cookies(): SealedCookies {
    if (this.#cookies === undefined) throw new MizzenError('missing-secret', `the cookie secret of ${this.config.name} has not arrived`);
    return this.#cookies;
  }

  /** undefined: nobody is logged in. */
  sessionOf(exchange: Exchange): Session | undefined {
    const text = joinedCookie(exchange.head.headers, sessionCookie(exchange, this));
    if (text === undefined) return undefined;
    let session = this.#remembered.get(text);
    if (session === undefined) {
      session = this.cookies.unseal('session', text) as Session | undefined;
      if (session === undefined) return undefined;
      if (this.#remembered.size >= maxRemembered) this.#remembered.delete(this.#remembered.keys().next().value!);
      this.#remembered.set(text, session);
    }
    return Date.now() < session.endsAt && !endedSessions.has(session.id) ? session : undefined;
  }

  newSession(tokens: Tokens, claims: Readonly<Record<string, unknown>>, endsAt = Date.now() + this.config.sessionSeconds * 1_000, id = token()): Session {
    const kept = ['sub', 'groups', ...this.#claimHeaders.map(([claim]) => claim)].filter((claim) => claims[claim] !== undefined);
    const { forwardsAccessToken } = this.config;
    const mayRefresh = tokens.refreshToken !== undefined;
    return {
      id,
      claims: Object.fromEntries(kept.map((claim) => [claim, claims[claim]])),
      // A token that has ended is of no use to the service.
      endsAt: forwardsAccessToken && !mayRefresh ? Math.min(endsAt, tokens.accessTokenEndsAt ?? endsAt) : endsAt,
      refreshAt: mayRefresh ? tokens.accessTokenEndsAt : undefined,
      refreshToken: tokens.refreshToken,
      idToken: tokens.idToken !== undefined && tokens.idToken.length <= maxIdTokenBytes ? tokens.idToken : undefined,
      accessToken: forwardsAccessToken ? tokens.accessToken : undefined,
    };
  }

  /** Many requests of one page, one refresh: providers take a refresh token that is used twice for stolen. */
  refreshed(session: Session): Promise<Session> {
    const key = session.refreshToken!;
    let asking = this.#refreshing.get(key);
    if (asking === undefined) {
      asking = this.provider.refresh(key).then((tokens) => {
        if (tokens.claims !== undefined && tokens.claims['sub'] !== session.claims['sub']) throw new RefusedByProvider('it is somebody else');
        return this.newSession({ ...tokens, idToken: tokens.idToken ?? session.idToken }, { ...session.claims, ...tokens.claims }, session.endsAt, session.id);
      });
      this.#refreshing.set(key, asking);
      const forget = () => void this.#refreshing.delete(key);
      asking.then(() => boundary.after(refreshedLivesMs, forget, forget).unref()).catch(forget);
    }
    return asking;
  }

  /** undefined: it is too long for cookies. */
  sessionCookies(exchange: Exchange, session: Session): string[] | undefined {
    const seconds = Math.max(1, Math.floor((session.endsAt - Date.now()) / 1_000));
    const text = this.cookies.seal('session', session);
    return setCookies(sessionCookie(exchange, this), text, `${attributes(exchange)}; Max-Age=${seconds}`, exchange.head.headers);
  }

  /** Tells the service, and the filters after this one, whose request it is. */
  tell(exchange: Exchange, { claims, accessToken }: Session): void {
    const { headers } = exchange.head;
    removeCookies(headers, (cookie) => cookie.includes(`mizzen-session-${this.mark}`) || cookie.includes(`mizzen-login-${this.mark}`));
    const groups = Array.isArray(claims['groups']) ? claims['groups'].filter((group): group is string => typeof group === 'string') : [];
    const subject = String(claims['sub']);
    const consumer: Consumer = { name: /^[\x21-\x7e]{1,200}$/.test(subject) ? subjectName(this.config.issuer, subject) : '', groups, claims };
    if (consumer.name !== '') headers.set(consumerHeader, consumer.name);
    if (groups.length > 0) headers.set(groupsHeader, groups.filter((group) => /^[\x21-\x2b\x2d-\x7e]+$/.test(group)).join(','));
    for (const [claim, header] of this.#claimHeaders) {
      const value = claims[claim];
      if (['string', 'number', 'boolean'].includes(typeof value) && /^[\x20-\x7e]*$/.test(String(value))) headers.set(header, String(value));
    }
    if (this.config.forwardsAccessToken) {
      headers.remove('authorization');
      if (accessToken !== undefined && /^[\x21-\x7e]+$/.test(accessToken)) headers.set('authorization', `Bearer ${accessToken}`);
    }
    exchange.consumer = consumer;
  }
}

const token = () => randomBytes(32).toString('base64url');

const schemeOf = ({ head, settings }: Exchange) => head.headers.get('x-forwarded-proto') ?? (settings.isTls ? 'https' : 'http');
const originOf = (exchange: Exchange) => `${schemeOf(exchange)}://${exchange.head.authority}`;

// A cookie with this prefix is nobody else's: no subdomain's, no plain page's (RFC 6265bis section 4.1.3.2). Without TLS browsers do not take it.
const prefixOf = (exchange: Exchange) => (schemeOf(exchange) === 'https' ? '__Host-' : '');
const attributes = (exchange: Exchange) => `Path=/; HttpOnly; SameSite=Lax${schemeOf(exchange) === 'https' ? '; Secure' : ''}`;
const sessionCookie = (exchange: Exchange, { mark }: Login) => `${prefixOf(exchange)}mizzen-session-${mark}`;
const loginCookie = (exchange: Exchange, { mark }: Login, state: string) => `${prefixOf(exchange)}mizzen-login-${mark}-${state.slice(0, 8)}`;

/** A person who waits for a page; scripts cannot be sent to another site to log in. */
function isNavigation({ method, headers }: RequestHead): boolean {
  if (method !== 'GET' && method !== 'HEAD') return false;
  const mode = headers.get('sec-fetch-mode');
  return mode === undefined ? headers.getJoined('accept')?.includes('text/html') === true : mode === 'navigate';
}

function redirect(exchange: Exchange, location: string, cookies: readonly string[]): void {
  exchange.replyWith(302, '', 'login_redirect', [
    ['location', location],
    ['cache-control', 'no-store'],
    ...cookies.map((cookie) => ['set-cookie', cookie] as const),
  ]);
}
