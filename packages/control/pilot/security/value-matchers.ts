import type { Init } from '@mizzen/envoy-api';
import type { CidrRangeSchema } from '@mizzen/envoy-api/gen/envoy/config/core/v3/address_pb.js';
import type { HeaderMatcherSchema } from '@mizzen/envoy-api/gen/envoy/config/route/v3/route_components_pb.js';
import type { MetadataMatcherSchema } from '@mizzen/envoy-api/gen/envoy/type/matcher/v3/metadata_pb.js';
import type { StringMatcherSchema } from '@mizzen/envoy-api/gen/envoy/type/matcher/v3/string_pb.js';
import type { ValueMatcherSchema } from '@mizzen/envoy-api/gen/envoy/type/matcher/v3/value_pb.js';

export type Text = Init<typeof StringMatcherSchema>;
type Value = Init<typeof ValueMatcherSchema>;

export const quoted = (text: string) => text.replace(/[.*+?^${}()|[\]\\]/g, '\\$&');

export const regex = (pattern: string): Text => ({ matchPattern: { case: 'safeRegex', value: { regex: pattern } } });
export const exactly = (value: string, ignoreCase = false): Text => ({ matchPattern: { case: 'exact', value }, ignoreCase });
export const beginning = (value: string, ignoreCase = false): Text => ({ matchPattern: { case: 'prefix', value }, ignoreCase });
export const ending = (value: string, ignoreCase = false): Text => ({ matchPattern: { case: 'suffix', value }, ignoreCase });

/** `*` is anything but nothing; a text may begin or end in `*`. */
export function wildcard(value: string, ignoreCase = false): Text {
  if (value === '*') return regex('.+');
  if (value.startsWith('*')) return ending(value.slice(1), ignoreCase);
  return value.endsWith('*') ? beginning(value.slice(0, -1), ignoreCase) : exactly(value, ignoreCase);
}

export function headerMatcher(name: string, value: string, ignoreCase = false): Init<typeof HeaderMatcherSchema> {
  return {
    name,
    headerMatchSpecifier: value === '*' ? { case: 'presentMatch', value: true } : { case: 'stringMatch', value: wildcard(value, ignoreCase) },
  };
}

export function cidrRange(text: string): Init<typeof CidrRangeSchema> {
  const [addressPrefix = '', length] = text.split('/');
  return { addressPrefix, prefixLen: length === undefined ? (addressPrefix.includes(':') ? 128 : 32) : Number(length) };
}

export const anyOf = (values: readonly Value[]): Value =>
  values.length === 1 ? values[0]! : { matchPattern: { case: 'orMatch', value: { valueMatchers: [...values] } } };
export const textValue = (value: Text): Value => ({ matchPattern: { case: 'stringMatch', value } });
export const inList = (value: Value): Value => ({ matchPattern: { case: 'listMatch', value: { matchPattern: { case: 'oneOf', value } } } });

export function metadata(filter: string, path: readonly string[], value: Value): Init<typeof MetadataMatcherSchema> {
  return { filter, path: path.map((key) => ({ segment: { case: 'key' as const, value: key } })), value };
}

/** Where the filter for tokens leaves what a token says. */
export const jwtFilter = 'envoy.filters.http.jwt_authn';
export const jwtPayload = 'payload';

export const claim = (name: string, text: Text) => metadata(jwtFilter, [jwtPayload, name], textValue(text));

/** A claim that is one of these texts, or a list that holds one of them. */
export function claimAmong(path: readonly string[], values: readonly string[]) {
  const value = anyOf(values.map((one) => textValue(wildcard(one))));
  return metadata(jwtFilter, [jwtPayload, ...path], { matchPattern: { case: 'orMatch', value: { valueMatchers: [inList(value), value] } } });
}

/** `experimental.envoy.filters.NAME[KEY]`: `[v]` is a list that holds v. */
export function filterValues(filter: string, key: string, values: readonly string[]) {
  const one = (value: string) => (value.startsWith('[') && value.endsWith(']') ? inList(textValue(wildcard(value.slice(1, -1)))) : textValue(wildcard(value)));
  return metadata(filter, [key], anyOf(values.map(one)));
}
