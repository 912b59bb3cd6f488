/**
 * The fields of a request as HTTP/2 carries them (RFC 9113 sections 8.2 and 8.3), checked: what HTTP/1.1 could read in another way, or
 * not at all, is malformed.
 */
export interface RequestFields {
  readonly method: string;
  readonly scheme: string;
  readonly authority: string;
  readonly path: string;
  /** RFC 8441: the protocol that an extended CONNECT asks for; '' without one. */
  readonly protocol: string;
  /** -1: not said. */
  readonly contentLength: number;
  /** Names in lower case, in their order, pseudo-header fields left out. */
  readonly fields: readonly (readonly [name: string, value: string])[];
}

/** Section 8.2.2: fields that are about one connection. */
const connectionSpecific: ReadonlySet<string> = new Set(['connection', 'proxy-connection', 'keep-alive', 'transfer-encoding', 'upgrade']);
const namePattern = /^[!#$%&'*+\-.^_`|~0-9a-z]+$/;
/** Section 8.2.1: no NUL, CR or LF, no white space at the ends; other control bytes have no business here either. */
const valuePattern = /^(?:[\x21-\x7e\x80-\xff](?:[\x20-\x7e\x80-\xff\t]*[\x21-\x7e\x80-\xff])?)?$/;
const pseudoNames = [':method', ':scheme', ':authority', ':path', ':protocol'] as const;

/** The fields of a request, or the reason why they are none: a stream error of type PROTOCOL_ERROR. */
export function readRequestFields(received: readonly (readonly [string, string])[]): RequestFields | string {
  const pseudo = new Map<string, string>();
  const fields: (readonly [string, string])[] = [];
  let contentLength = -1;
  for (const field of received) {
    const [name, value] = field;
    if (!valuePattern.test(value)) return 'invalid_value';
    if (name.charCodeAt(0) === 0x3a) {
      if (fields.length > 0) return 'pseudo_header_after_fields';
      if (!(pseudoNames as readonly string[]).includes(name)) return 'unknown_pseudo_header';
      if (pseudo.has(name)) return 'pseudo_header_twice';
      pseudo.set(name, value);
      continue;
    }
    if (!namePattern.test(name)) return 'invalid_name';
    if (connectionSpecific.has(name)) return 'connection_specific_field';
    if (name === 'te' && value !== 'trailers') return 'te';
    if (name === 'content-length') {
      if (!/^\d{1,15}$/.test(value) || (contentLength >= 0 && contentLength !== Number(value))) return 'content_length';
      contentLength = Number(value);
    }
    fields.push(field);
  }
  const method = pseudo.get(':method');
  const scheme = pseudo.get(':scheme');
  const path = pseudo.get(':path');
  const protocol = pseudo.get(':protocol');
  if (method === undefined || !/^[!#$%&'*+\-.^_`|~0-9A-Za-z]+$/.test(method)) return 'method';
  const isPlainConnect = method === 'CONNECT' && protocol === undefined;
  if (protocol !== undefined && method !== 'CONNECT') return 'protocol_without_connect';
  // Section 8.5: CONNECT names its target only.
  if (isPlainConnect ? scheme !== undefined || path !== undefined || !pseudo.get(':authority') : scheme === undefined || path === undefined)
    return 'pseudo_header_missing';
  if (path !== undefined && path !== '*' && !path.startsWith('/')) return 'path';
  const host = fields.find(([name]) => name === 'host')?.[1];
  const authority = pseudo.get(':authority') ?? host ?? '';
  // Section 8.3.1: two names for one target are two opinions.
  if (host !== undefined && host !== authority) return 'host_differs';
  return { method, scheme: scheme ?? '', authority, path: path ?? '', protocol: protocol ?? '', contentLength, fields };
}

/** Trailers: fields without pseudo-header fields (section 8.1). Returns the reason why they are none. */
export function trailersProblem(received: readonly (readonly [string, string])[]): string | undefined {
  for (const [name, value] of received) if (!namePattern.test(name) || connectionSpecific.has(name) || !valuePattern.test(value)) return 'invalid_trailers';
  return undefined;
}
