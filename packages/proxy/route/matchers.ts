import { MizzenError } from '@mizzen/common';
import type { HeaderMatcher } from '@mizzen/envoy-api/gen/envoy/config/route/v3/route_components_pb.js';
import type { StringMatcher } from '@mizzen/envoy-api/gen/envoy/type/matcher/v3/string_pb.js';
import { RE2JS } from 're2js';
import type { RequestHead } from '../message/request-head.ts';

/** Compiled forms of Envoy's string and header matchers: functions made once, when the configuration arrives. */
export type TextTest = (text: string) => boolean;

export function compileRegex(pattern: string): RE2JS {
  try {
    return RE2JS.compile(pattern);
  } catch (error) {
    throw new MizzenError('invalid-regex', `${JSON.stringify(pattern)} is no RE2 regular expression: ${error instanceof Error ? error.message : ''}`);
  }
}

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
  matches(head: RequestHead): boolean;
}

/** envoy route_components.proto `HeaderMatcher`, pseudo-headers included. */
export function compileHeaderMatcher(matcher: HeaderMatcher): Condition {
  const { name, headerMatchSpecifier: spec, invertMatch, treatMissingHeaderAsEmpty } = matcher;
  const read = headerReader(name.toLowerCase());
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
  return {
    matches(head) {
      const value = read(head);
      if (presence !== undefined) return ((value !== undefined) === presence) !== invertMatch;
      if (value === undefined) {
        if (!treatMissingHeaderAsEmpty) return false;
        return test('') !== invertMatch;
      }
      return test(value) !== invertMatch;
    },
  };
}

function headerReader(name: string): (head: RequestHead) => string | undefined {
  switch (name) {
    case ':method':
      return (head) => head.method;
    case ':path':
      return (head) => head.target;
    case ':authority':
      return (head) => head.authority;
    case ':scheme':
      return (head) => head.headers.get('x-forwarded-proto') ?? 'http';
    default:
      return (head) => head.headers.getJoined(name);
  }
}
