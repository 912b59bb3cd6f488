import { MizzenError } from '@mizzen/common';
import type { MetadataMatcher } from '@mizzen/envoy-api/gen/envoy/type/matcher/v3/metadata_pb.js';
import type { ValueMatcher } from '@mizzen/envoy-api/gen/envoy/type/matcher/v3/value_pb.js';
import { compileStringMatcher } from './matchers.ts';

/** What filters have found out, by their names: the claims of a token, say. */
export interface HasMetadata {
  metadata(filter: string): unknown;
}

/** envoy metadata.proto `MetadataMatcher`: a value at a path below what a filter has found out. */
export function compileMetadataMatcher({ filter, path, value, invert }: MetadataMatcher, place: string): (subject: HasMetadata) => boolean {
  if (value === undefined) throw new MizzenError('invalid-matcher', `${place}: a matcher of metadata has no value`);
  const keys = path.map(({ segment }) => {
    if (segment.case !== 'key') throw new MizzenError('invalid-matcher', `${place}: a matcher of metadata has an empty segment`);
    return segment.value;
  });
  const fits = compileValueMatcher(value, place);
  return (subject) => {
    let at = subject.metadata(filter);
    for (const key of keys) at = isRecord(at) && Object.hasOwn(at, key) ? at[key] : undefined;
    return fits(at) !== invert;
  };
}

const isRecord = (value: unknown): value is Readonly<Record<string, unknown>> => typeof value === 'object' && value !== null && !Array.isArray(value);

/** envoy value.proto `ValueMatcher`. */
function compileValueMatcher({ matchPattern: pattern }: ValueMatcher, place: string): (value: unknown) => boolean {
  switch (pattern.case) {
    case 'nullMatch':
      return (value) => value === null;
    case 'boolMatch':
      return (value) => value === pattern.value;
    case 'stringMatch': {
      const fits = compileStringMatcher(pattern.value);
      return (value) => typeof value === 'string' && fits(value);
    }
    case 'doubleMatch': {
      const { matchPattern: wanted } = pattern.value;
      if (wanted.case === 'exact') return (value) => value === wanted.value;
      if (wanted.case === 'range') return (value) => typeof value === 'number' && value >= wanted.value.start && value < wanted.value.end;
      throw new MizzenError('invalid-matcher', `${place}: a matcher of numbers is empty`);
    }
    case 'presentMatch':
      return (value) => (value !== undefined) === pattern.value;
    case 'listMatch': {
      if (pattern.value.matchPattern.case !== 'oneOf') throw new MizzenError('invalid-matcher', `${place}: a matcher of lists is empty`);
      const fits = compileValueMatcher(pattern.value.matchPattern.value, place);
      return (value) => Array.isArray(value) && value.some(fits);
    }
    case 'orMatch': {
      const all = pattern.value.valueMatchers.map((one) => compileValueMatcher(one, place));
      return (value) => all.some((fits) => fits(value));
    }
    default:
      throw new MizzenError('unsupported-matcher', `${place}: a matcher of values of type ${(pattern as { case?: string }).case ?? '(none)'} is not supported`);
  }
}
