import { MizzenError, messageOf } from '@mizzen/common';
import { durationToMs } from '@mizzen/envoy-api';
import {
  type JwtProvider as JwtProviderMessage,
  JwtProviderSchema,
  JwtProvider_NormalizePayloadSchema as NormalizePayloadSchema,
} from '@mizzen/envoy-api/gen/envoy/extensions/filters/http/jwt_authn/v3/config_pb.js';
import { queryValues } from '@mizzen/gateway';
import type { CompactToken } from '../../jwt/compact-token.ts';
import { KeySet } from '../../jwt/key-set.ts';
import { TokenVerifier } from '../../jwt/token-verifier.ts';
import { cookieValue } from '../../message/cookie.ts';
import type { RequestHead } from '../../message/request-head.ts';
import { compileStringMatcher } from '../../route/matchers.ts';
import { refuseUnsupported, supportedFields } from '../../xds/supported-fields.ts';

const supported = supportedFields(JwtProviderSchema, [
  ...['issuer', 'audiences', 'subjects', 'requireExpiration', 'maxLifetime', 'localJwks', 'forward', 'fromHeaders', 'fromParams', 'fromCookies'],
  ...['forwardPayloadHeader', 'padForwardPayloadHeader', 'payloadInMetadata', 'normalizePayloadInMetadata', 'headerInMetadata', 'clockSkewSeconds'],
  ...['jwtCacheConfig', 'claimToHeaders', 'clearRouteCache'],
]);

/** A token, and where in the request it was. */
export interface FoundToken {
  readonly text: string;
  readonly place: { readonly kind: 'header' | 'parameter' | 'cookie'; readonly name: string };
}

const defaultSkewSeconds = 60;
/** Each costs a signature: what shows more tokens is refused without a look at any. */
const maxTokens = 8;

/** Tokens of one issuer: where they are, what they must be, and what becomes of them (envoy jwt_authn config.proto `JwtProvider`). */
export class Provider {
  readonly name: string;
  readonly verifier: TokenVerifier;
  readonly keys: KeySet | undefined;
  readonly forwardsToken: boolean;
  readonly clearsRoute: boolean;
  readonly payloadHeader: string;
  readonly padsPayload: boolean;
  readonly payloadKey: string;
  readonly headerKey: string;
  readonly claimHeaders: readonly { readonly header: string; readonly path: readonly string[] }[];
  readonly #listClaims: readonly string[];
  readonly #headers: readonly { readonly name: string; readonly prefix: string }[];
  readonly #parameters: readonly string[];
  readonly #cookies: readonly string[];

  constructor(name: string, message: JwtProviderMessage, place: string) {
    const at = `${place}, provider ${name}`;
    refuseUnsupported(JwtProviderSchema, message, supported, at);
    refuseUnsupported(NormalizePayloadSchema, message.normalizePayloadInMetadata, new Set(['spaceDelimitedClaims']), at);
    this.name = name;
    this.keys = keysOf(message, at);
    this.verifier = new TokenVerifier({
      issuer: message.issuer,
      audiences: message.audiences,
      fitsSubject: message.subjects && compileStringMatcher(message.subjects),
      requiresExpiration: message.requireExpiration,
      maxLifetimeSeconds: message.maxLifetime && (durationToMs(message.maxLifetime) ?? 0) / 1000,
      clockSkewSeconds: message.clockSkewSeconds || defaultSkewSeconds,
    });
    this.forwardsToken = message.forward;
    this.clearsRoute = message.clearRouteCache;
    this.payloadHeader = message.forwardPayloadHeader.toLowerCase();
    this.padsPayload = message.padForwardPayloadHeader;
    this.payloadKey = message.payloadInMetadata;
    this.headerKey = message.headerInMetadata;
    this.claimHeaders = message.claimToHeaders.map(({ headerName, claimName }) => ({ header: headerName.toLowerCase(), path: claimName.split('.') }));
    this.#listClaims = message.normalizePayloadInMetadata?.spaceDelimitedClaims ?? [];
    const isAnywhere = message.fromHeaders.length + message.fromParams.length + message.fromCookies.length > 0;
    this.#headers = isAnywhere
      ? message.fromHeaders.map(({ name: header, valuePrefix }) => ({ name: header.toLowerCase(), prefix: valuePrefix }))
      : [{ name: 'authorization', prefix: 'Bearer ' }];
    this.#parameters = isAnywhere ? message.fromParams : ['access_token'];
    this.#cookies = message.fromCookies;
  }

  /** Headers that tokens are read from. */
  get tokenHeaders(): readonly string[] {
    return this.#headers.map(({ name }) => name);
  }

  /** Query parameters that tokens are read from. */
  get tokenParameters(): readonly string[] {
    return this.#parameters;
  }

  /** Headers that only this filter may set. */
  get ownHeaders(): readonly string[] {
    return [...(this.payloadHeader === '' ? [] : [this.payloadHeader]), ...this.claimHeaders.map(({ header }) => header)];
  }

  tokensIn({ headers, target }: RequestHead): FoundToken[] {
    const found: FoundToken[] = [];
    for (const { name, prefix } of this.#headers)
      for (let at = headers.names.indexOf(name); at >= 0; at = headers.names.indexOf(name, at + 1)) {
        const text = tokenBehind(headers.valueAt(at), prefix);
        if (text !== undefined) found.push({ text, place: { kind: 'header', name } });
      }
    for (const name of this.#parameters) for (const text of queryValues(target, name)) found.push({ text, place: { kind: 'parameter', name } });
    for (const name of this.#cookies) {
      const text = cookieValue(headers, name);
      if (text !== undefined) found.push({ text, place: { kind: 'cookie', name } });
    }
    return found.length > maxTokens ? [{ text: '', place: found[0]!.place }] : found;
  }

  /** The claims as other filters match on them: lists that are written with spaces as lists. */
  payloadOf({ claims }: CompactToken): Readonly<Record<string, unknown>> {
    const lists = this.#listClaims.filter((name) => typeof claims[name] === 'string');
    return lists.length === 0 ? claims : { ...claims, ...Object.fromEntries(lists.map((name) => [name, (claims[name] as string).split(' ').filter(Boolean)])) };
  }
}

function keysOf({ jwksSourceSpecifier: source }: JwtProviderMessage, place: string): KeySet | undefined {
  const text = source.case === 'localJwks' && source.value.specifier.case === 'inlineString' ? source.value.specifier.value : undefined;
  if (text === undefined)
    throw new MizzenError('unsupported-filter', `${place}: keys are taken inline only (local_jwks.inline_string): the control plane fetches them`);
  try {
    return KeySet.read(text);
  } catch (error) {
    // A key set that holds nothing of use lets nobody in; one that cannot be read at all is a mistake.
    if (text.trim() === '' || error instanceof SyntaxError)
      throw new MizzenError('invalid-filter', `${place}: the key set cannot be read: ${messageOf(error)}`);
    return undefined;
  }
}

/**
 * The token behind a prefix; undefined where there is none. A scheme is case-insensitive (RFC 9110 section 11.1), any white space may follow it, and
 * whatever a lenient server could take for it counts as one: what is left is then no token, and the request is refused.
 */
export function tokenBehind(value: string, prefix: string): string | undefined {
  const scheme = prefix.trim();
  if (scheme === '') return value.trim();
  const lower = value.toLowerCase();
  const wanted = scheme.toLowerCase();
  for (let at = lower.indexOf(wanted); at >= 0; at = lower.indexOf(wanted, at + 1))
    if (at === 0 || !/[a-z0-9+/=_.~-]/.test(lower[at - 1]!)) {
      const rest = value.slice(at + scheme.length);
      return rest === '' || /^[ \t]/.test(rest) ? rest.trim() : value.slice(at);
    }
  return undefined;
}
