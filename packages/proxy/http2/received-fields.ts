import { isTrailerName } from '../message/fields.ts';
import type { HeadLimits } from '../message/head-limits.ts';
import { RequestHead } from '../message/request-head.ts';
import { ResponseHead } from '../message/response-head.ts';
import type { FieldSink } from './hpack/decoder.ts';
import { fieldKinds, type HeaderField } from './hpack/header-field.ts';

/**
 * The fields of a block become a head (RFC 9113 sections 8.1 to 8.3), checked: what HTTP/1.1 could read in another way, or not at all, is
 * malformed. One object of each kind serves a connection: `begin`, the fields, `finish`.
 */

/** host [":" port], RFC 3986 section 3.2 without userinfo; IPv6 in brackets. */
const authorityPattern = /^(?:[A-Za-z0-9._~!$&'()*+,;=%-]+|\[[0-9A-Fa-f:.]+\])(?::\d{0,5})?$/;
const methodPattern = /^[!#$%&'*+\-.^_`|~0-9A-Za-z]+$/;
/** What HTTP/1.1's request line can hold, without a fragment. */
const targetPattern = /^[\x21\x22\x24-\x7e\x80-\xff]+$/;
const lengthPattern = /^\d{1,15}$/;

/** The block is longer than the limits allow: the request is answered with 431. */
export const tooLarge = 'header_list_too_large';

export class RequestFields implements FieldSink {
  readonly #limits: HeadLimits;
  #head: RequestHead;
  #bytes: number;
  #count: number;
  #problem: string;
  #scheme: string | undefined;
  #path: string | undefined;
  #protocol: string | undefined;
  #authority: string | undefined;
  #host: string | undefined;
  #hasFields: boolean;
  #cookie: string;
  /** The last authority that was found to be one: most requests of a connection name the same. */
  #goodAuthority: string;

  constructor(limits: HeadLimits) {
    this.#limits = limits;
    this.#head = new RequestHead();
    this.#bytes = 0;
    this.#count = 0;
    this.#problem = '';
    this.#scheme = undefined;
    this.#path = undefined;
    this.#protocol = undefined;
    this.#authority = undefined;
    this.#host = undefined;
    this.#hasFields = false;
    this.#cookie = '';
    this.#goodAuthority = '';
  }

  begin(): void {
    const head = new RequestHead();
    head.isHttp2 = true;
    this.#head = head;
    this.#bytes = 0;
    this.#count = 0;
    this.#problem = '';
    this.#scheme = undefined;
    this.#path = undefined;
    this.#protocol = undefined;
    this.#authority = undefined;
    this.#host = undefined;
    this.#hasFields = false;
    this.#cookie = '';
  }

  onField(field: HeaderField): void {
    this.#bytes += field.bytes;
    if (this.#problem !== '') return;
    if (this.#bytes > this.#limits.maxHeadBytes || ++this.#count > this.#limits.maxHeaderCount + 5) return this.#refuse(tooLarge);
    if (!field.hasValidValue) return this.#refuse('invalid_value');
    const { name, value, kind } = field;
    const head = this.#head;
    if (kind >= fieldKinds.method && kind <= fieldKinds.unknownPseudo) return this.#pseudo(kind, value);
    if (!this.#hasFields) {
      this.#hasFields = true;
      if (this.#authority !== undefined) head.headers.addVerified('host', this.#authority);
    }
    switch (kind) {
      case fieldKinds.regular:
        return head.headers.add(name, value);
      case fieldKinds.alias:
        if (this.#limits.underscores !== 'allow' && name.includes('_')) {
          if (this.#limits.underscores === 'reject') this.#refuse('underscore_in_header_name');
          return;
        }
        head.headers.hasAliases = true;
        return head.headers.addVerified(name, value);
      case fieldKinds.watched:
        head.headers.hasWatchedNames = true;
        return head.headers.addVerified(name, value);
      case fieldKinds.te:
        if (value !== 'trailers') return this.#refuse('te');
        return head.headers.addVerified(name, value);
      case fieldKinds.contentLength:
        if (!lengthPattern.test(value) || head.contentLength >= 0) return this.#refuse('content_length');
        head.contentLength = Number(value);
        return head.headers.addVerified(name, value);
      case fieldKinds.host:
        // Section 8.3.1: two names for one target are two opinions.
        if (this.#host !== undefined || (this.#authority !== undefined && this.#authority !== value)) return this.#refuse('host_differs');
        this.#host = value;
        if (this.#authority === undefined) head.headers.addVerified(name, value);
        return;
      case fieldKinds.cookie:
        // Section 8.2.3: HTTP/1.1 knows one field of this name.
        this.#cookie = this.#cookie === '' ? value : `${this.#cookie}; ${value}`;
        return;
      case fieldKinds.expect:
        if (value.toLowerCase() === '100-continue') head.expectsContinue = true;
        return head.headers.addVerified(name, value);
      case fieldKinds.connectionSpecific:
        return this.#refuse('connection_specific_field');
      default:
        return this.#refuse('invalid_name');
    }
  }

  /** The head, or the reason why it is none: a stream error of type PROTOCOL_ERROR, or `tooLarge`. */
  finish(endsStream: boolean): RequestHead | string {
    if (this.#problem !== '') return this.#problem;
    const head = this.#head;
    const { method } = head;
    const protocol = this.#protocol;
    if (method === '' || (method !== 'GET' && method !== 'POST' && !methodPattern.test(method))) return 'method';
    const isConnect = method === 'CONNECT';
    if (protocol !== undefined && (!isConnect || !methodPattern.test(protocol))) return 'protocol_without_connect';
    // Section 8.5: CONNECT names its target only.
    const path = this.#path;
    if (isConnect && protocol === undefined) {
      if (this.#scheme !== undefined || path !== undefined || !this.#authority || !/:\d+$/.test(this.#authority)) return 'connect_target';
    } else {
      if (!this.#scheme || path === undefined) return 'pseudo_header_missing';
      if (path.charCodeAt(0) !== 0x2f ? path !== '*' || method !== 'OPTIONS' : !targetPattern.test(path)) return 'path';
      if (path.length > this.#limits.maxTargetBytes) return tooLarge;
    }
    const authority = this.#authority ?? this.#host ?? '';
    if (authority !== this.#goodAuthority) {
      if (authority !== '' && !authorityPattern.test(authority)) return 'authority';
      this.#goodAuthority = authority;
    }
    if (!this.#hasFields && this.#authority !== undefined) head.headers.addVerified('host', authority);
    if (this.#cookie !== '') head.headers.addVerified('cookie', this.#cookie);
    head.authority = authority;
    head.target = path ?? '';
    if (isConnect) {
      // An extended CONNECT is what HTTP/1.1 calls an Upgrade (RFC 8441 section 5.1); what follows is no content.
      if (protocol !== undefined) {
        head.method = 'GET';
        head.upgrade = protocol;
      }
      if (head.contentLength >= 0) return 'content_length';
    } else if (endsStream) {
      if (head.contentLength > 0) return 'content_length_without_content';
      head.expectsContinue = false;
    } else head.isChunked = head.contentLength < 0;
    return head;
  }

  #refuse(problem: string): void {
    this.#problem = problem;
  }

  #pseudo(kind: number, value: string): void {
    if (this.#hasFields) return this.#refuse('pseudo_header_after_fields');
    switch (kind) {
      case fieldKinds.method:
        if (this.#head.method !== '') return this.#refuse('pseudo_header_twice');
        this.#head.method = value;
        return;
      case fieldKinds.scheme:
        if (this.#scheme !== undefined) return this.#refuse('pseudo_header_twice');
        this.#scheme = value;
        return;
      case fieldKinds.path:
        if (this.#path !== undefined) return this.#refuse('pseudo_header_twice');
        this.#path = value;
        return;
      case fieldKinds.authority:
        if (this.#authority !== undefined) return this.#refuse('pseudo_header_twice');
        this.#authority = value;
        return;
      case fieldKinds.protocol:
        if (this.#protocol !== undefined) return this.#refuse('pseudo_header_twice');
        this.#protocol = value;
        return;
      default:
        return this.#refuse('unknown_pseudo_header');
    }
  }
}

export class ResponseFields implements FieldSink {
  readonly #limits: HeadLimits;
  #head: ResponseHead;
  #bytes: number;
  #count: number;
  #problem: string;
  #hasFields: boolean;

  constructor(limits: HeadLimits) {
    this.#limits = limits;
    this.#head = new ResponseHead();
    this.#bytes = 0;
    this.#count = 0;
    this.#problem = '';
    this.#hasFields = false;
  }

  begin(): void {
    this.#head = new ResponseHead();
    this.#bytes = 0;
    this.#count = 0;
    this.#problem = '';
    this.#hasFields = false;
  }

  onField(field: HeaderField): void {
    this.#bytes += field.bytes;
    if (this.#problem !== '') return;
    if (this.#bytes > this.#limits.maxHeadBytes || ++this.#count > this.#limits.maxHeaderCount + 1) return this.#refuse(tooLarge);
    if (!field.hasValidValue) return this.#refuse('invalid_value');
    const { name, value, kind } = field;
    const head = this.#head;
    if (kind >= fieldKinds.method && kind <= fieldKinds.unknownPseudo) {
      if (kind !== fieldKinds.status) return this.#refuse('unknown_pseudo_header');
      if (this.#hasFields) return this.#refuse('pseudo_header_after_fields');
      if (head.status !== 0) return this.#refuse('pseudo_header_twice');
      const status = value.length === 3 ? Number(value) : 0;
      if (!(status >= 100 && status <= 999)) return this.#refuse('status');
      head.status = status;
      return;
    }
    this.#hasFields = true;
    switch (kind) {
      case fieldKinds.contentLength:
        if (!lengthPattern.test(value) || head.contentLength >= 0) return this.#refuse('content_length');
        head.contentLength = Number(value);
        return head.headers.addVerified(name, value);
      case fieldKinds.connectionSpecific:
        return this.#refuse('connection_specific_field');
      case fieldKinds.invalidName:
        return this.#refuse('invalid_name');
      case fieldKinds.watched:
        head.headers.hasWatchedNames = true;
        return head.headers.addVerified(name, value);
      default:
        return head.headers.addVerified(name, value);
    }
  }

  finish(): ResponseHead | string {
    if (this.#problem !== '') return this.#problem;
    if (this.#head.status === 0) return 'pseudo_header_missing';
    // Section 8.6: there is no switching of protocols.
    if (this.#head.status === 101) return 'status';
    return this.#head;
  }

  #refuse(problem: string): void {
    this.#problem = problem;
  }
}

/** Trailers; what they must not carry is dropped. */
export class TrailerFields implements FieldSink {
  readonly #limits: HeadLimits;
  #fields: (readonly [string, string])[];
  #bytes: number;
  #problem: string;

  constructor(limits: HeadLimits) {
    this.#limits = limits;
    this.#fields = [];
    this.#bytes = 0;
    this.#problem = '';
  }

  begin(): void {
    this.#fields = [];
    this.#bytes = 0;
    this.#problem = '';
  }

  onField(field: HeaderField): void {
    this.#bytes += field.bytes;
    if (this.#problem !== '') return;
    const { name, value, kind } = field;
    if (this.#bytes > this.#limits.maxHeadBytes || this.#fields.length >= this.#limits.maxHeaderCount) this.#problem = tooLarge;
    else if (
      !field.hasValidValue ||
      (kind >= fieldKinds.method && kind <= fieldKinds.connectionSpecific) ||
      kind === fieldKinds.invalidName ||
      (kind === fieldKinds.te && value !== 'trailers')
    )
      this.#problem = 'invalid_trailers';
    else if ((kind === fieldKinds.regular || kind === fieldKinds.alias) && isTrailerName(name)) this.#fields.push([name, value]);
  }

  finish(): readonly (readonly [string, string])[] | string {
    return this.#problem === '' ? this.#fields : this.#problem;
  }
}
