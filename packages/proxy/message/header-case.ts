/**
 * How field names are written when a message is sent on: as they came, in lower case (as Envoy does unless told otherwise), or with
 * capitals after hyphens for peers that wrongly insist on it (protocol.proto `Http1ProtocolOptions.header_key_format`).
 */
export type HeaderCase = 'preserve' | 'lower' | 'proper';

/** `name` is in lower case. */
export function writeName(name: string, headerCase: HeaderCase): string {
  return headerCase === 'proper' ? name.replace(/(?:^|-)[a-z]/g, (start) => start.toUpperCase()) : name;
}
