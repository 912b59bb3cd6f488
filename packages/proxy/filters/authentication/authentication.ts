import { type AuthenticationPerRoute, AuthenticationPerRouteSchema, AuthenticationSchema } from '@mizzen/envoy-api/gen/mizzen/http/v1/filters_pb.js';
import { queryValues, removeQueryParameter } from '@mizzen/gateway';
import type { Consumer, Exchange } from '../../http/exchange.ts';
import type { Fields } from '../../message/fields.ts';
import type { ProxyCounters } from '../../telemetry/proxy-counters.ts';
import type { FilterKind, HttpFilter, SecretsInQuery } from '../filter.ts';
import { unpackConfig } from '../unpack-config.ts';
import { CredentialTable, type Holder } from './credential-table.ts';
import { JwtVerifier } from './jwt-verifier.ts';
import { coversRequest, digestMatches, isSignedWith, readSignatureInput, signatureBase } from './message-signature.ts';
import { ReplayWindow } from './replay-window.ts';

const name = 'mizzen.filters.http.authentication';
export const consumerHeader = 'x-mizzen-consumer';
export const groupsHeader = 'x-mizzen-consumer-groups';
const defaultSkewSeconds = 300;
const defaultMaxBodyBytes = 1024 * 1024;

interface RouteAuthentication extends SecretsInQuery {
  readonly config: AuthenticationPerRoute;
  readonly headers: readonly string[];
  readonly verifiers: readonly JwtVerifier[];
  readonly allowed: ReadonlySet<string> | undefined;
  readonly allowedGroups: ReadonlySet<string>;
  /** `www-authenticate`, one for each way in. */
  readonly challenges: Fields;
  readonly replays: ReplayWindow;
}

/** What a request shows. */
type Shown =
  | { readonly kind: 'apiKey'; readonly key: string }
  | { readonly kind: 'basic'; readonly username: string; readonly password: string }
  | { readonly kind: 'jwt'; readonly token: string; readonly verifiers: readonly JwtVerifier[] }
  | { readonly kind: 'hmac'; readonly input: string; readonly signature: string }
  | { readonly kind: 'unreadable'; readonly reason: string };

/**
 * mizzen.filters.http.authentication: an API's own credentials. A route says which kinds it takes; a request shows exactly one of them, or is
 * turned away with 401. What was proved is told to the service in `x-mizzen-consumer`, which a client cannot set itself.
 */
export const authentication: FilterKind = {
  name,
  create(any, place, { counters }) {
    const config = any === undefined ? undefined : unpackConfig(AuthenticationSchema, any, place);
    return new AuthenticationFilter(new CredentialTable(config ?? ({ consumers: [] } as never), place), counters);
  },
  compileRoute(any, place): RouteAuthentication {
    const config = unpackConfig(AuthenticationPerRouteSchema, any, place);
    const challenges: (readonly [string, string])[] = [];
    const realm = `realm="${(config.basic?.realm || 'api').replace(/[^\x20-\x7e]|["\\]/g, '')}"`;
    if (config.apiKey !== undefined) challenges.push(['www-authenticate', `ApiKey ${realm}`]);
    if (config.basic !== undefined) challenges.push(['www-authenticate', `Basic ${realm}, charset="UTF-8"`]);
    if (config.jwt.length > 0) challenges.push(['www-authenticate', `Bearer ${realm}`]);
    if (config.hmac !== undefined) challenges.push(['www-authenticate', `Signature ${realm}`]);
    return {
      config,
      headers: (config.apiKey?.headers ?? []).map((header) => header.toLowerCase()),
      verifiers: config.jwt.map((provider) => new JwtVerifier(provider, place)),
      allowed: config.allowedConsumers.length + config.allowedGroups.length === 0 ? undefined : new Set(config.allowedConsumers),
      allowedGroups: new Set(config.allowedGroups),
      challenges,
      secretParameters: [...(config.apiKey?.queryParameters ?? []), ...config.jwt.flatMap((provider) => provider.queryParameters)],
      replays: new ReplayWindow((config.hmac?.clockSkewSeconds || defaultSkewSeconds) * 2_000),
    };
  },
};

class AuthenticationFilter implements HttpFilter {
  readonly name = name;
  readonly #table: CredentialTable;
  readonly #counters: ProxyCounters;

  constructor(table: CredentialTable, counters: ProxyCounters) {
    this.#table = table;
    this.#counters = counters;
  }

  onRequest(exchange: Exchange): 'continue' | 'stop' {
    const route = exchange.filterConfig(name) as RouteAuthentication | undefined;
    if (route === undefined) return 'continue';
    const { headers } = exchange.head;
    headers.remove(consumerHeader);
    headers.remove(groupsHeader);
    const shown = credentialsOf(exchange, route);
    if (shown.length === 0) {
      if (route.config.allowsAnonymous) return 'continue';
      return this.#refuse(exchange, route, 'missing', 'this API needs a credential');
    }
    // Which of several is meant would be for us to guess.
    if (shown.length > 1) return this.#refuse(exchange, route, 'ambiguous', 'the request shows more than one credential');
    const credential = shown[0]!;
    switch (credential.kind) {
      case 'unreadable':
        return this.#refuse(exchange, route, credential.reason, 'the credential cannot be read');
      case 'apiKey':
        return this.#takeHolder(exchange, route, this.#table.byApiKey(credential.key), 'unknown_key');
      case 'basic':
        return this.#basic(exchange, route, credential.username, credential.password);
      case 'jwt':
        return this.#jwt(exchange, route, credential.token, credential.verifiers);
      case 'hmac':
        return this.#hmac(exchange, route, credential.input, credential.signature);
    }
  }

  #basic(exchange: Exchange, route: RouteAuthentication, username: string, password: string): 'continue' | 'stop' {
    const now = Date.now();
    const known = this.#table.rememberedLogin(username, password, now);
    if (known !== undefined) return this.#takeHolder(exchange, route, known, '');
    this.#table.checkLogin(username, password, now, (holder) => {
      if (exchange.isOver) return;
      if (holder === 'busy') {
        this.#counters.countRejection('authentication', 'busy');
        return exchange.replyProblem(503, { title: 'Service Unavailable', detail: 'too many logins at once: try again' }, 'authentication_busy', [
          ['retry-after', '1'],
        ]);
      }
      if (this.#takeHolder(exchange, route, holder, 'wrong_login') === 'continue') exchange.resumeFilters();
    });
    return 'stop';
  }

  #jwt(exchange: Exchange, route: RouteAuthentication, token: string, verifiers: readonly JwtVerifier[]): 'continue' | 'stop' {
    const now = Date.now();
    for (const verifier of verifiers) {
      const consumer = verifier.remembered(token, now);
      if (consumer !== undefined) return this.#take(exchange, route, consumer, verifier);
    }
    void this.#verify(exchange, route, token, verifiers);
    return 'stop';
  }

  async #verify(exchange: Exchange, route: RouteAuthentication, token: string, verifiers: readonly JwtVerifier[]): Promise<void> {
    let problem = 'malformed';
    for (const verifier of verifiers) {
      const result = await verifier.verify(token);
      if (exchange.isOver) return;
      if ('consumer' in result) {
        if (this.#take(exchange, route, result.consumer, verifier) === 'continue') exchange.resumeFilters();
        return;
      }
      // The provider that knew the token best says what is wrong with it.
      if (verifiers.length === 1 || !['wrong_issuer', 'unknown_key', 'wrong_signature'].includes(result.problem)) problem = result.problem;
    }
    if (problem === 'keys_unavailable') {
      this.#counters.countRejection('authentication', problem);
      return exchange.replyProblem(
        503,
        { title: 'Service Unavailable', detail: 'the keys that tokens are checked with cannot be fetched' },
        'jwt_keys_unavailable',
      );
    }
    this.#refuse(exchange, route, problem, `the token is not accepted: ${problem.replaceAll('_', ' ')}`, true);
  }

  #hmac(exchange: Exchange, route: RouteAuthentication, inputText: string, signature: string): 'continue' | 'stop' {
    const { head } = exchange;
    const { hmac } = route.config;
    const refuse = (reason: string, detail: string) => this.#refuse(exchange, route, reason, detail);
    const input = readSignatureInput(inputText);
    if (input === undefined) return refuse('malformed', 'Signature-Input cannot be read (RFC 9421): one signature with keyid and created is taken');
    if (input.algorithm !== undefined && input.algorithm !== 'hmac-sha256') return refuse('algorithm_not_allowed', 'signatures must be made with hmac-sha256');
    const now = Date.now();
    const skewMs = (hmac?.clockSkewSeconds || defaultSkewSeconds) * 1000;
    if (Math.abs(now - input.created * 1000) > skewMs) return refuse('expired', 'the signature was made too long ago, or in the future');
    if (input.expires !== undefined && now > input.expires * 1000) return refuse('expired', 'the signature has expired');
    if (!coversRequest(input.components, head.target.includes('?'), head.hasBody || hmac?.requiresDigest === true))
      return refuse('not_covered', 'the signature must cover @method, @authority, @path, @query where there is one, and content-digest where there is a body');
    const key = this.#table.byHmacKeyId(input.keyId);
    const base = signatureBase(input, head, exchange.settings.isTls ? 'https' : 'http');
    if (base === undefined) return refuse('not_covered', 'the signature covers a field that the request does not have');
    if (key === undefined || !isSignedWith(key.secret, base, input.label, signature)) return refuse('wrong_signature', 'the signature is not right');
    if (!route.replays.isNew(`${input.keyId} ${signature}`, now)) return refuse('replayed', 'this very request has been sent before');
    const digest = input.components.includes('content-digest') ? head.headers.getJoined('content-digest') : undefined;
    if (digest === undefined) return this.#takeHolder(exchange, route, key.holder, '');
    exchange.collectRequest(hmac?.maxBodyBytes || defaultMaxBodyBytes, (body) => {
      if (!digestMatches(digest, body)) refuse('wrong_digest', 'the content is not what Content-Digest says');
      else if (this.#takeHolder(exchange, route, key.holder, '') === 'continue') exchange.resumeFilters();
    });
    return 'stop';
  }

  #takeHolder(exchange: Exchange, route: RouteAuthentication, holder: Holder | undefined, problem: string): 'continue' | 'stop' {
    if (holder === undefined) return this.#refuse(exchange, route, problem, 'the credential is not known here');
    if (Date.now() >= holder.expiresAtMs) return this.#refuse(exchange, route, 'expired', 'the credential has expired');
    return this.#take(exchange, route, holder.consumer, undefined);
  }

  /** `proved`: the holder of a credential, or what a token says; a token whose subject is mapped to a Consumer is that Consumer's. */
  #take(exchange: Exchange, route: RouteAuthentication, proved: Consumer, verifier: JwtVerifier | undefined): 'continue' | 'stop' {
    const isKnown = ({ name: known }: Consumer) =>
      route.config.namespace === '' || known.startsWith(`${route.config.namespace}/`) || route.allowed?.has(known) === true;
    const holder = verifier === undefined || proved.name === '' ? undefined : this.#table.bySubject(proved.name, isKnown);
    if (holder !== undefined && Date.now() >= holder.expiresAtMs) return this.#refuse(exchange, route, 'expired', 'the credential has expired');
    const consumer = holder === undefined ? proved : { ...holder.consumer, claims: proved.claims };
    const { config, allowed, allowedGroups, headers: keyHeaders } = route;
    // A listener may answer for APIs of several namespaces: each has its own consumers. Tokens say themselves whose they are.
    const isStranger = verifier === undefined && !isKnown(consumer);
    if (isStranger || (allowed !== undefined && !allowed.has(consumer.name) && !consumer.groups.some((group) => allowedGroups.has(group)))) {
      this.#counters.countRejection('authentication', 'not_allowed');
      exchange.replyProblem(403, { title: 'Forbidden', detail: 'this consumer may not call this API' }, 'consumer_not_allowed');
      return 'stop';
    }
    const { headers } = exchange.head;
    if (!config.forwardsCredentials) {
      for (const header of keyHeaders) headers.remove(header);
      if (config.basic !== undefined || config.jwt.length > 0) headers.remove('authorization');
      for (const parameter of [...(config.apiKey?.queryParameters ?? []), ...config.jwt.flatMap((provider) => provider.queryParameters)])
        exchange.retarget(removeQueryParameter(exchange.head.target, parameter));
    }
    if (consumer.name !== '') headers.set(consumerHeader, consumer.name);
    if (consumer.groups.length > 0) headers.set(groupsHeader, consumer.groups.filter((group) => /^[\x21-\x2b\x2d-\x7e]+$/.test(group)).join(','));
    if (verifier !== undefined)
      for (const [claim, header] of Object.entries(verifier.provider.claimToHeader)) {
        headers.remove(header.toLowerCase());
        const value = consumer.claims[claim];
        if (['string', 'number', 'boolean'].includes(typeof value) && /^[\x20-\x7e]*$/.test(String(value))) headers.set(header.toLowerCase(), String(value));
      }
    exchange.consumer = consumer;
    return 'continue';
  }

  #refuse(exchange: Exchange, route: RouteAuthentication, reason: string, detail: string, isToken = false): 'stop' {
    this.#counters.countRejection('authentication', reason);
    const challenges = isToken
      ? route.challenges.map(
          ([field, value]) => [field, value.startsWith('Bearer') ? `${value}, error="invalid_token", error_description="${detail}"` : value] as const,
        )
      : route.challenges;
    exchange.replyProblem(401, { title: 'Unauthorized', detail }, `unauthorized_${reason}`, challenges);
    return 'stop';
  }
}

function credentialsOf({ head }: Exchange, { config, headers, verifiers }: RouteAuthentication): Shown[] {
  const shown: Shown[] = [];
  const fields = head.headers;
  for (const header of headers)
    for (let at = fields.names.indexOf(header); at >= 0; at = fields.names.indexOf(header, at + 1)) shown.push({ kind: 'apiKey', key: fields.valueAt(at) });
  for (const parameter of config.apiKey?.queryParameters ?? []) for (const key of queryValues(head.target, parameter)) shown.push({ kind: 'apiKey', key });
  for (const verifier of verifiers) {
    for (const header of verifier.provider.headers) {
      if (header.toLowerCase() === 'authorization') continue;
      const token = fields.getJoined(header.toLowerCase());
      if (token !== undefined) shown.push({ kind: 'jwt', token: token.replace(/^Bearer[ \t]+/i, ''), verifiers: [verifier] });
    }
    for (const parameter of verifier.provider.queryParameters)
      for (const token of queryValues(head.target, parameter)) shown.push({ kind: 'jwt', token, verifiers: [verifier] });
  }
  if (config.basic !== undefined || verifiers.length > 0)
    for (let at = fields.names.indexOf('authorization'); at >= 0; at = fields.names.indexOf('authorization', at + 1)) {
      const one = readAuthorization(fields.valueAt(at), config.basic !== undefined, verifiers);
      if (one !== undefined) shown.push(one);
    }
  if (config.hmac !== undefined) {
    const input = fields.getJoined('signature-input');
    const signature = fields.getJoined('signature');
    if (input !== undefined && signature !== undefined) shown.push({ kind: 'hmac', input, signature });
  }
  return shown;
}

function readAuthorization(text: string, takesBasic: boolean, verifiers: readonly JwtVerifier[]): Shown | undefined {
  const match = /^([A-Za-z][A-Za-z0-9-]*)[ \t]+([A-Za-z0-9._~+/-]+=*)$/.exec(text);
  const scheme = match?.[1]?.toLowerCase();
  if (scheme === 'basic' && takesBasic) {
    const decoded = Buffer.from(match![2]!, 'base64').toString('utf8');
    const cut = decoded.indexOf(':');
    if (cut < 0) return { kind: 'unreadable', reason: 'malformed' };
    return { kind: 'basic', username: decoded.slice(0, cut), password: decoded.slice(cut + 1) };
  }
  if (scheme === 'bearer') {
    const takers = verifiers.filter(
      ({ provider }) => provider.headers.length === 0 || provider.headers.some((header) => header.toLowerCase() === 'authorization'),
    );
    return takers.length > 0 ? { kind: 'jwt', token: match![2]!, verifiers: takers } : undefined;
  }
  return match === null ? { kind: 'unreadable', reason: 'malformed' } : undefined;
}
