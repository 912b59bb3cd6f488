import { createHash, createHmac, timingSafeEqual } from 'node:crypto';
import type { RequestHead } from '../../message/request-head.ts';

/**
 * HTTP message signatures (RFC 9421) with hmac-sha256, and the digest of the content that they cover (RFC 9530). Of RFC 9421 this reads one
 * signature with components without parameters, which is what API clients send.
 */
export interface SignatureInput {
  readonly label: string;
  readonly components: readonly string[];
  /** The member as it came: what `@signature-params` is. */
  readonly parameters: string;
  readonly keyId: string;
  readonly created: number;
  readonly expires: number | undefined;
  readonly algorithm: string | undefined;
}

const maxInputLength = 1024;
const inputPattern = /^([a-z*][a-z0-9_.*-]*)=(\(((?:"[a-z0-9@_.-]+"(?: (?="))?)*)\)((?:;[a-z][a-z0-9_-]*=(?:"[\x20-\x21\x23-\x5b\x5d-\x7e]*"|\d{1,15}))*))$/;

/** undefined: it cannot be read. */
export function readSignatureInput(text: string): SignatureInput | undefined {
  if (text.length > maxInputLength) return undefined;
  const match = inputPattern.exec(text.trim());
  if (match === null) return undefined;
  const components = match[3] === '' ? [] : match[3]!.split(' ').map((quoted) => quoted.slice(1, -1));
  const parameters = new Map<string, string>();
  for (const [, name, string, number] of match[4]!.matchAll(/;([a-z][a-z0-9_-]*)=(?:"([^"]*)"|(\d+))/g)) {
    if (parameters.has(name!)) return undefined;
    parameters.set(name!, string ?? number!);
  }
  const keyId = parameters.get('keyid');
  const created = parameters.get('created');
  if (keyId === undefined || created === undefined || new Set(components).size !== components.length) return undefined;
  const expires = parameters.get('expires');
  return {
    label: match[1]!,
    components,
    parameters: match[2]!,
    keyId,
    created: Number(created),
    expires: expires === undefined ? undefined : Number(expires),
    algorithm: parameters.get('alg'),
  };
}

/** The bytes that are signed (section 2.5). undefined: a component is covered that the request does not have. */
export function signatureBase(input: SignatureInput, head: RequestHead, scheme: string): string | undefined {
  const lines: string[] = [];
  const cut = head.target.indexOf('?');
  for (const component of input.components) {
    let value: string | undefined;
    switch (component) {
      case '@method':
        value = head.method;
        break;
      case '@authority':
        value = head.authority.toLowerCase();
        break;
      case '@scheme':
        value = scheme;
        break;
      case '@target-uri':
        value = `${scheme}://${head.authority.toLowerCase()}${head.target}`;
        break;
      case '@request-target':
        value = head.target;
        break;
      case '@path':
        value = cut < 0 ? head.target : head.target.slice(0, cut);
        break;
      case '@query':
        value = cut < 0 ? '?' : head.target.slice(cut);
        break;
      default:
        value = component.startsWith('@') ? undefined : head.headers.getJoined(component)?.trim();
    }
    if (value === undefined) return undefined;
    lines.push(`"${component}": ${value}`);
  }
  lines.push(`"@signature-params": ${input.parameters}`);
  return lines.join('\n');
}

/** Whether these are covered: who is asked what. A signature that leaves them out could be sent on to something else. */
export function coversRequest(components: readonly string[], hasQuery: boolean, hasBody: boolean): boolean {
  const has = (name: string) => components.includes(name);
  const path = has('@target-uri') || has('@request-target') || (has('@path') && (!hasQuery || has('@query')));
  return has('@method') && path && (has('@authority') || has('@target-uri')) && (!hasBody || has('content-digest'));
}

/** The signature of a label, decoded; undefined: the field does not have it. */
export function signatureOf(label: string, signatureField: string): Buffer | undefined {
  const match = new RegExp(`^${label.replace(/[.*]/g, '\\$&')}=:([A-Za-z0-9+/]{43}=):$`).exec(signatureField.trim());
  return match === null ? undefined : Buffer.from(match[1]!, 'base64');
}

export function isSignedWith(secret: Buffer, base: string, signature: Buffer): boolean {
  return timingSafeEqual(createHmac('sha256', secret).update(base, 'latin1').digest(), signature);
}

/** Whether the content is what Content-Digest says; with several digests, those of sha-256 and sha-512 count. */
export function digestMatches(field: string, body: Buffer): boolean {
  let isKnown = false;
  for (const part of field.split(',')) {
    const match = /^\s*(sha-256|sha-512)=:([A-Za-z0-9+/]+=*):\s*$/.exec(part);
    if (match === null) continue;
    isKnown = true;
    const actual = createHash(match[1] === 'sha-256' ? 'sha256' : 'sha512')
      .update(body)
      .digest();
    const claimed = Buffer.from(match[2]!, 'base64');
    if (claimed.length !== actual.length || !timingSafeEqual(actual, claimed)) return false;
  }
  return isKnown;
}
