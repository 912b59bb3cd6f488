import { fromBinary } from '@bufbuild/protobuf';
import { type Logger, MizzenError, messageOf } from '@mizzen/common';
import {
  type AuthenticationPerRoute,
  AuthenticationPerRouteSchema,
  AuthenticationSchema,
  ConsumerListSchema,
} from '@mizzen/envoy-api/gen/mizzen/http/v1/filters_pb.js';
import { queryValues, removeQueryParameter } from '@mizzen/gateway';
import type { ProxyContext } from '../../http/connection-settings.ts';
import type { Consumer, Exchange } from '../../http/exchange.ts';
import type { Fields } from '../../message/fields.ts';
import { consumerHeader, groupsHeader } from '../../message/owned-headers.ts';
import type { ProxyCounters } from '../../telemetry/proxy-counters.ts';
import type { FilterKind, HttpFilter, SecretsInQuery } from '../filter.ts';
import { type NeedsSecrets, refuseWithoutSecret, secretNameOf } from '../generic-secrets.ts';
import { unpackConfig } from '../unpack-config.ts';
import { CredentialTable, type Holder } from './credential-table.ts';
import { JwtVerifier } from './jwt-verifier.ts';
import { coversRequest, digestMatches, isSignedWith, readSignatureInput, signatureBase, signatureOf } from './message-signature.ts';
import { ReplayWindow } from './replay-window.ts';

const name = 'mizzen.filters.http.authentication';
const defaultSkewSeconds = 300;
const defaultMaxBodyBytes = 1024 * 1024;

interface RouteAuthentication extends SecretsInQuery, NeedsSecrets {
  readonly config: AuthenticationPerRoute;
  readonly headers: readonly string[];
  readonly verifiers: readonly JwtVerifier[];
  readonly allowed: ReadonlySet<string> | undefined;
  readonly allowedGroups: ReadonlySet<string>;
  /** `www-authenticate`, one for each way in. */
  readonly challenges: Fields;
  /** Each holds the consumers whose credentials count here. */
  readonly secretNames: readonly string[];
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
  create(any, place, context) {
    if (any !== undefined) unpackConfig(AuthenticationSchema, any, place);
    return new AuthenticationFilter(context);
  },
  compileRoute(any, place): RouteAuthentication {
    const config = unpackConfig(AuthenticationPerRouteSchema, any, place);
    const secretNames = config.consumers.map((secret) => secretNameOf(secret, 'consumers', place));
    if (secretNames.length === 0 && (config.apiKey ?? config.basic ?? config.hmac) !== undefined)
      throw new MizzenError('invalid-filter', `${place}: consumers must name the generic secrets that hold the credentials`);
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
      secretNames,
    };
  },
};

class AuthenticationFilter implements HttpFilter {
  readonly name = name;
  readonly #counters: ProxyCounters;
  readonly #logger: Logger;
  /** By their length. They outlive updates: a new configuration does not make an old request a new one. */
  readonly #replays: Map<number, ReplayWindow>;

  constructor({ counters, logger, filterStates }: ProxyContext) {
    this.#counters = counters;
    this.#logger = logger;
    this.#replays = (filterStates.get(name) as Map<number, ReplayWindow> | undefined) ?? new Map<number, ReplayWindow>();
    filterStates.set(name, this.#replays);
  }

  onRequest(exchange: Exchange): 'continue' | 'stop' {
    const route = exchange.filterConfig(name) as RouteAuthentication | undefined;
    if (route === undefined) return 'continue';
    const { headers } = exchange.head;
    headers.remove(consumerHeader);
    headers.remove(groupsHeader);
    const tables = this.#tablesOf(exchange, route);
    if (tables === undefined) return refuseWithoutSecret(exchange, 'authentication');
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
        return this.#takeHolder(
          exchange,
          route,
          findIn(tables, (table) => table.byApiKey(credential.key)),
          'unknown_key',
        );
      case 'basic':
        return this.#basic(exchange, route, tables, credential.username, credential.password);
      case 'jwt':
        return this.#jwt(exchange, route, tables, credential.token, credential.verifiers);
      case 'hmac':
        return this.#hmac(exchange, route, tables, credential.input, credential.signature);
    }
  }

  /** undefined: a secret that holds consumers has not arrived. */
  #tablesOf({ settings }: Exchange, { secretNames }: RouteAuthentication): readonly CredentialTable[] | undefined {
    const tables: CredentialTable[] = [];
    for (const secretName of secretNames) {
      const secret = settings.context.genericSecret(secretName);
      if (secret === undefined) return undefined;
      let table = compiledTables.get(secret);
      if (table === undefined) {
        table = readTable(secret, secretName, this.#logger);
        compiledTables.set(secret, table);
      }
      tables.push(table);
    }
    return tables;
  }

  #basic(exchange: Exchange, route: RouteAuthentication, tables: readonly CredentialTable[], username: string, password: string): 'continue' | 'stop' {
    const now = Date.now();
    // The table that knows the name; one that does not makes a wrong name take as long as a wrong password.
    const table = tables.find((one) => one.hasLogin(username)) ?? tables[0];
    if (table === undefined) return this.#takeHolder(exchange, route, undefined, 'wrong_login');
    const known = table.rememberedLogin(username, password, now);
    if (known !== undefined) return this.#takeHolder(exchange, route, known, '');
    const checked = (holder: Holder | undefined | 'busy' | 'failed') => {
      if (holder === 'failed')
        return exchange.replyProblem(500, { title: 'Internal Server Error', detail: 'the password could not be verified' }, 'internal_error');
      if (holder === 'busy') {
        this.#counters.countRejection('authentication', 'busy');
        return exchange.replyProblem(503, { title: 'Service Unavailable', detail: 'too many logins at once: try again' }, 'authentication_busy', [
          ['retry-after', '1'],
        ]);
      }
      if (this.#takeHolder(exchange, route, holder, 'wrong_login') === 'continue') exchange.resumeFilters();
    };
    table.checkLogin(username, password, now, exchange.later(checked));
    return 'stop';
  }

  #jwt(
    exchange: Exchange,
    route: RouteAuthentication,
    tables: readonly CredentialTable[],
    token: string,
    verifiers: readonly JwtVerifier[],
  ): 'continue' | 'stop' {
    const now = Date.now();
    for (const verifier of verifiers) {
      const consumer = verifier.remembered(token, now);
      if (consumer !== undefined) return this.#takeToken(exchange, route, tables, consumer, verifier);
    }
    exchange.startWork(() => this.#verify(exchange, route, tables, token, verifiers));
    return 'stop';
  }

  async #verify(
    exchange: Exchange,
    route: RouteAuthentication,
    tables: readonly CredentialTable[],
    token: string,
    verifiers: readonly JwtVerifier[],
  ): Promise<void> {
    let problem = 'malformed';
    for (const verifier of verifiers) {
      const result = await verifier.verify(token);
      if (exchange.isOver) return;
      if ('consumer' in result) {
        if (this.#takeToken(exchange, route, tables, result.consumer, verifier) === 'continue') exchange.resumeFilters();
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

  #hmac(exchange: Exchange, route: RouteAuthentication, tables: readonly CredentialTable[], inputText: string, signature: string): 'continue' | 'stop' {
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
    const key = findIn(tables, (table) => table.byHmacKeyId(input.keyId));
    const base = signatureBase(input, head, exchange.settings.isTls ? 'https' : 'http');
    if (base === undefined) return refuse('not_covered', 'the signature covers a field that the request does not have');
    const signed = signatureOf(input.label, signature);
    if (key === undefined || signed === undefined || !isSignedWith(key.secret, base, signed)) return refuse('wrong_signature', 'the signature is not right');
    // By its bytes: neither the label nor the spelling of the base64 is signed.
    if (!this.#replaysWithin(2 * skewMs).isNew(`${input.keyId} ${signed.toString('latin1')}`, now))
      return refuse('replayed', 'this very request has been sent before');
    const digest = input.components.includes('content-digest') ? head.headers.getJoined('content-digest') : undefined;
    if (digest === undefined) return this.#takeHolder(exchange, route, key.holder, '');
    exchange.collectRequest(hmac?.maxBodyBytes || defaultMaxBodyBytes, (body) => {
      if (!digestMatches(digest, body)) refuse('wrong_digest', 'the content is not what Content-Digest says');
      else if (this.#takeHolder(exchange, route, key.holder, '') === 'continue') exchange.resumeFilters();
    });
    return 'stop';
  }

  #replaysWithin(windowMs: number): ReplayWindow {
    let window = this.#replays.get(windowMs);
    if (window === undefined) this.#replays.set(windowMs, (window = new ReplayWindow(windowMs)));
    return window;
  }

  #takeHolder(exchange: Exchange, route: RouteAuthentication, holder: Holder | undefined, problem: string): 'continue' | 'stop' {
    if (holder === undefined) return this.#refuse(exchange, route, problem, 'the credential is not known here');
    if (Date.now() >= holder.expiresAtMs) return this.#refuse(exchange, route, 'expired', 'the credential has expired');
    return this.#take(exchange, route, holder.consumer, undefined);
  }

  /** What a token says; one whose subject is mapped to a Consumer is that Consumer's. */
  #takeToken(exchange: Exchange, route: RouteAuthentication, tables: readonly CredentialTable[], proved: Consumer, verifier: JwtVerifier): 'continue' | 'stop' {
    const holder = proved.name === '' ? undefined : findIn(tables, (table) => table.bySubject(proved.name, (consumer) => isKnown(route, consumer)));
    if (holder !== undefined && Date.now() >= holder.expiresAtMs) return this.#refuse(exchange, route, 'expired', 'the credential has expired');
    return this.#take(exchange, route, holder === undefined ? proved : { ...holder.consumer, claims: proved.claims }, verifier);
  }

  #take(exchange: Exchange, route: RouteAuthentication, consumer: Consumer, verifier: JwtVerifier | undefined): 'continue' | 'stop' {
    const { config, allowed, allowedGroups, headers: keyHeaders } = route;
    // A listener may answer for APIs of several namespaces: each has its own consumers. Tokens say themselves whose they are.
    const isStranger = verifier === undefined && !isKnown(route, consumer);
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

/** Tables by the secret that they were made of: one that has changed is another object. */
const compiledTables = new WeakMap<Buffer, CredentialTable>();

/** Content that cannot be read holds no consumers: no request passes by it. */
function readTable(secret: Buffer, secretName: string, logger: Logger): CredentialTable {
  const onProblem = (problem: string) => logger.error('a credential cannot be used', { secret: secretName, reason: problem });
  try {
    return new CredentialTable(fromBinary(ConsumerListSchema, secret), onProblem);
  } catch (error) {
    onProblem(messageOf(error));
    return new CredentialTable({ consumers: [] }, onProblem);
  }
}

function findIn<Found>(tables: readonly CredentialTable[], find: (table: CredentialTable) => Found | undefined): Found | undefined {
  for (const table of tables) {
    const found = find(table);
    if (found !== undefined) return found;
  }
  return undefined;
}

/** Consumers of the API's namespace, and others that it allows by name. */
function isKnown({ config, allowed }: RouteAuthentication, { name: known }: Consumer): boolean {
  return config.namespace === '' || known.startsWith(`${config.namespace}/`) || allowed?.has(known) === true;
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
