import { MizzenError } from '@mizzen/common';
import { compileRegex } from '@mizzen/common/linear-regex';
import type { HeaderMatcher } from '@mizzen/envoy-api/gen/envoy/config/route/v3/route_components_pb.js';
import type { StringMatcher } from '@mizzen/envoy-api/gen/envoy/type/matcher/v3/string_pb.js';
import type { HeaderList } from '../message/header-list.ts';
import type { RequestHead } from '../message/request-head.ts';
import type { HasMetadata } from './metadata-matcher.ts';

/** Compiled forms of Envoy's string and header matchers: functions made once, when the configuration arrives. */
export type TextTest = (text: string) => boolean;

/** Envoy's regexes match the whole text. */
export function regexTest(pattern: string): TextTest {
  const compiled = compileRegex(pattern);
  return (text) => compiled.matches(text);
}

export function compileStringMatcher(matcher: StringMatcher): TextTest {
  const { matchPattern, ignoreCase } = matcher;
  const fold = ignoreCase ? (text: string) => text.toLowerCase() : (text: string) => text;
  switch (matchPattern.case) {
    case 'exact': {
      const wanted = fold(matchPattern.value);
      return (text) => fold(text) === wanted;
    }
    case 'prefix': {
      const wanted = fold(matchPattern.value);
      return (text) => fold(text).startsWith(wanted);
    }
    case 'suffix': {
      const wanted = fold(matchPattern.value);
      return (text) => fold(text).endsWith(wanted);
    }
    case 'contains': {
      const wanted = fold(matchPattern.value);
      return (text) => fold(text).includes(wanted);
    }
    case 'safeRegex':
      return regexTest(matchPattern.value.regex);
    default:
      throw new MizzenError('unsupported-matcher', `a string matcher of type ${matchPattern.case ?? '(none)'} is not supported`);
  }
}

/** What a request must hold; all of a route's conditions must be met. */
export interface Condition {
  /** `metadata`: what filters have found out of the request; none: nothing yet. */
  matches(head: RequestHead, metadata?: HasMetadata | undefined): boolean;
}

/** What the header fields of a message must hold. */
export interface HeadersTest {
  matches(headers: HeaderList): boolean;
}

/** A matcher for fields, pseudo-headers not among them. */
export function compileFieldMatcher(matcher: HeaderMatcher): HeadersTest {
  const name = matcher.name.toLowerCase();
  const { presence, test } = compileValueTest(matcher);
  const { invertMatch, treatMissingHeaderAsEmpty } = matcher;
  return {
    matches(headers) {
      const first = headers.names.indexOf(name);
      if (presence !== undefined) return ((first >= 0 || treatMissingHeaderAsEmpty) === presence) !== invertMatch;
      if (first < 0) return treatMissingHeaderAsEmpty && test('') !== invertMatch;
      // A field that is there several times meets the condition when one of them does (and an inverted one when none does).
      for (let at = first; at >= 0; at = headers.names.indexOf(name, at + 1)) if (test(headers.valueAt(at))) return !invertMatch;
      return invertMatch;
    },
  };
}

/** envoy route_components.proto `HeaderMatcher`, pseudo-headers included. */
export function compileHeaderMatcher(matcher: HeaderMatcher): Condition {
  const read = pseudoHeaderReader(matcher.name.toLowerCase());
  if (read === undefined) {
    const field = compileFieldMatcher(matcher);
    return { matches: (head) => field.matches(head.headers) };
  }
  const { presence, test } = compileValueTest(matcher);
  const { invertMatch } = matcher;
  return { matches: (head) => (presence ?? test(read(head))) !== invertMatch };
}

/** `presence`: it is only asked whether the header is there (true) or not. */
function compileValueTest({ headerMatchSpecifier: spec }: HeaderMatcher): { readonly presence: boolean | undefined; readonly test: TextTest } {
  let test: TextTest;
  let presence: boolean | undefined;
  switch (spec.case) {
    case 'presentMatch':
      presence = spec.value;
      test = () => true;
      break;
    case undefined:
      presence = true;
      test = () => true;
      break;
    case 'stringMatch':
      test = compileStringMatcher(spec.value);
      break;
    case 'exactMatch':
      test = (text) => text === spec.value;
      break;
    case 'prefixMatch':
      test = (text) => text.startsWith(spec.value);
      break;
    case 'suffixMatch':
      test = (text) => text.endsWith(spec.value);
      break;
    case 'containsMatch':
      test = (text) => text.includes(spec.value);
      break;
    case 'safeRegexMatch':
      test = regexTest(spec.value.regex);
      break;
    case 'rangeMatch': {
      const { start, end } = spec.value;
      test = (text) => /^-?\d{1,18}$/.test(text) && BigInt(text) >= start && BigInt(text) < end;
      break;
    }
    default:
      throw new MizzenError('unsupported-matcher', `a header matcher of type ${(spec as { case: string }).case} is not supported`);
  }
  return { presence, test };
}

/** Pseudo-headers are always there; undefined: it is none. */
export function pseudoHeaderReader(name: string): ((head: RequestHead) => string) | undefined {
  switch (name) {
    case ':method':
      return (head) => head.method;
    case ':path':
      return (head) => head.target;
    case 'host':
    case ':authority':
      return (head) => head.authority;
    case ':scheme':
      return (head) => head.headers.get('x-forwarded-proto') ?? 'http';
    default:
      return undefined;
  }
}
