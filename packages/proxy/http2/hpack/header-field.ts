import { isAlias, isWatchedName } from '../../message/owned-headers.ts';

/** What a field's name means to HTTP/2 (RFC 9113 section 8); found once, when the field enters a table, and not again for each message. */
export const fieldKinds = {
  regular: 0,
  method: 1,
  scheme: 2,
  path: 3,
  authority: 4,
  protocol: 5,
  status: 6,
  unknownPseudo: 7,
  /** About one connection only (section 8.2.2). */
  connectionSpecific: 8,
  te: 9,
  contentLength: 10,
  host: 11,
  cookie: 12,
  expect: 13,
  invalidName: 14,
  /** One that the proxy may own: it steers proxies, or says who calls and from where. */
  watched: 15,
  /** With characters that CGI turns into `_`: perhaps another spelling of one that the proxy owns. */
  alias: 16,
} as const;
export type FieldKind = (typeof fieldKinds)[keyof typeof fieldKinds];

const known: ReadonlyMap<string, FieldKind> = new Map<string, FieldKind>([
  [':method', fieldKinds.method],
  [':scheme', fieldKinds.scheme],
  [':path', fieldKinds.path],
  [':authority', fieldKinds.authority],
  [':protocol', fieldKinds.protocol],
  [':status', fieldKinds.status],
  ['connection', fieldKinds.connectionSpecific],
  ['proxy-connection', fieldKinds.connectionSpecific],
  ['keep-alive', fieldKinds.connectionSpecific],
  ['transfer-encoding', fieldKinds.connectionSpecific],
  ['upgrade', fieldKinds.connectionSpecific],
  ['te', fieldKinds.te],
  ['content-length', fieldKinds.contentLength],
  ['host', fieldKinds.host],
  ['cookie', fieldKinds.cookie],
  ['expect', fieldKinds.expect],
]);

/** Section 8.2.1: lower case only. */
const namePattern = /^[!#$%&'*+\-.^_`|~0-9a-z]+$/;
/** Section 8.2.1: no NUL, CR or LF, no white space at the ends; other control bytes have no business here either. */
const valuePattern = /^(?:[\x21-\x7e\x80-\xff](?:[\x20-\x7e\x80-\xff\t]*[\x21-\x7e\x80-\xff])?)?$/;

function kindOf(name: string): FieldKind {
  const found = known.get(name);
  if (found !== undefined) return found;
  if (name.charCodeAt(0) === 0x3a) return fieldKinds.unknownPseudo;
  if (!namePattern.test(name)) return fieldKinds.invalidName;
  if (isAlias(name)) return fieldKinds.alias;
  return isWatchedName(name) ? fieldKinds.watched : fieldKinds.regular;
}

/** One field of a header block: name and value in latin1, as they came, and what they are. */
export class HeaderField {
  readonly name: string;
  readonly value: string;
  readonly kind: FieldKind;
  readonly hasValidValue: boolean;
  /** What it counts for in SETTINGS_MAX_HEADER_LIST_SIZE and in a table (RFC 7541 section 4.1). */
  readonly bytes: number;

  /** `like`: a field of the same name. */
  constructor(name: string, value: string, like?: HeaderField) {
    this.name = like === undefined ? name : like.name;
    this.value = value;
    this.kind = like === undefined ? kindOf(name) : like.kind;
    this.hasValidValue = valuePattern.test(value);
    this.bytes = name.length + value.length + 32;
  }
}
