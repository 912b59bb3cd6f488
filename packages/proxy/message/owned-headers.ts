/**
 * Which header fields belong to the proxy, and in which spellings. CGI (RFC 3875 section 4.1.18), WSGI, Rack and PHP hand a field to the
 * application as `HTTP_` and its name in upper case with `_` for every `-`; some servers write `_` for every other character too. `x_user`,
 * `X-User` and `x.user` are one variable there, so a name that folds into an owned one is treated as that one.
 */

/** The name that CGI and its successors cannot tell from this one. `name` is in lower case. */
export function foldedName(name: string): string {
  return name.replace(/[^a-z0-9-]/g, '-');
}

/** Whether a name in lower case has other characters than letters, digits and `-`, so that it may be another spelling of one that has not. */
export function isAlias(name: string): boolean {
  return /[^a-z0-9-]/.test(name);
}

/** Which consumer a request is from. */
export const consumerHeader = 'x-mizzen-consumer';
export const groupsHeader = 'x-mizzen-consumer-groups';

/**
 * Which callers with a certificate of the mesh may send headers that the mesh owns, by their identity (mizzen.http.v1.OwnedHeaders). A program that
 * holds a certificate and does not use its sidecar can send anything; only what the identity of a caller entitles it to is believed.
 */
export class OwnedHeaderRules {
  /** Names that authenticators make of claims, beside x-mizzen-consumer. */
  readonly claimHeaders: readonly string[];
  readonly #gateways: ReadonlySet<string>;
  readonly #authenticators: ReadonlySet<string>;
  readonly #messengers: ReadonlySet<string>;

  constructor(gateways: readonly string[], authenticators: readonly string[], messengers: readonly string[], claimHeaders: readonly string[]) {
    this.claimHeaders = claimHeaders.map((name) => name.toLowerCase());
    this.#gateways = new Set(gateways);
    this.#authenticators = new Set(authenticators);
    this.#messengers = new Set(messengers);
  }

  /** Whether a caller may say where a request comes from: x-forwarded-for, x-forwarded-client-cert. */
  maySayOrigin(uri: string): boolean {
    return this.#gateways.has(uri);
  }

  /** Whether a caller may say which consumer a request is from. */
  maySayConsumer(uri: string): boolean {
    return this.#authenticators.has(uri);
  }

  /** Whether a caller may say of a message who published it. */
  maySayPublisher(uri: string): boolean {
    return this.#messengers.has(uri);
  }
}

/** Rules that entitle no caller. */
export const noOwnedHeaderRules = new OwnedHeaderRules([], [], [], []);

export const isConsumerName = (name: string): boolean => name.startsWith(consumerHeader);
export const isOtherMizzenName = (name: string): boolean => name.startsWith('x-mizzen-') && !isConsumerName(name);

/** Headers by which a client could name another origin, address or path than its own, beside the X-Forwarded family. */
const originNames = new Set([
  ...['forwarded', 'x-real-ip', 'x-client-ip', 'true-client-ip', 'x-cluster-client-ip', 'x-remote-user', 'x-remote-ip', 'x-remote-addr'],
  ...['x-original-url', 'x-rewrite-url', 'x-original-uri', 'x-original-host', 'x-original-forwarded-for', 'x-host', 'x-scheme', 'x-proxyuser-ip'],
]);

/** Names that proxies and the mesh speak by among themselves: they steer, or they say who calls. */
export function isMeshName(name: string): boolean {
  return name.startsWith('x-envoy-') || name.startsWith('x-mizzen-');
}

/** Names that say where a request came from. A proxy at the edge sets them itself or removes them. */
export function isOriginName(name: string): boolean {
  return name.startsWith('x-forwarded') || originNames.has(name);
}

/** Names whose other spellings are removed at every hop and from every sender: the proxy, or the protocol itself, decides on them. */
export function isAlwaysOwned(folded: string): boolean {
  return isMeshName(folded) || isOriginName(folded) || reserved.has(folded);
}

const reserved = new Set([
  ...['authorization', 'proxy-authorization', 'cookie', 'host', 'connection', 'te', 'upgrade', 'expect', 'trailer'],
  ...['content-length', 'content-type', 'content-encoding', 'transfer-encoding', 'x-request-id'],
]);

/** What makes a list worth a look when it is received; the rest of requests pay nothing. */
export function isWatchedName(name: string): boolean {
  const first = name.charCodeAt(0);
  if (first !== 0x78 && first !== 0x66 && first !== 0x74) return false; // x, f, t
  return isMeshName(name) || isOriginName(name);
}
