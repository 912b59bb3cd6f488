import { MizzenError } from '@mizzen/common';
import { type QueryParameterMatcher, type RouteMatch, RouteMatchSchema } from '@mizzen/envoy-api/gen/envoy/config/route/v3/route_components_pb.js';
import { isGrpcRequest } from '../http/grpc.ts';
import { refuseUnsupported, supportedFields } from '../xds/supported-fields.ts';
import { type Condition, compileHeaderMatcher, compileStringMatcher, regexTest } from './matchers.ts';
import { compileMetadataMatcher, type HasMetadata } from './metadata-matcher.ts';
import { queryParameter } from './query.ts';
import type { PathCondition } from './route.ts';
import { shareOf } from './share.ts';

const supported = supportedFields(RouteMatchSchema, [
  ...[
    'prefix',
    'path',
    'safeRegex',
    'connectMatcher',
    'pathSeparatedPrefix',
    'caseSensitive',
    'runtimeFraction',
    'headers',
    'queryParameters',
    'grpc',
    'dynamicMetadata',
  ],
]);

const noMetadata: HasMetadata = { metadata: () => undefined };

/** envoy route_components.proto `RouteMatch`. */
export function compileMatch(
  match: RouteMatch | undefined,
  random: () => number,
  place: string,
): { readonly path: PathCondition; readonly conditions: readonly Condition[] } {
  if (!match) throw new MizzenError('invalid-route', `${place}: a route has no match`);
  refuseUnsupported(RouteMatchSchema, match, supported, place);
  const path = compilePath(match.pathSpecifier, match.caseSensitive === false, place);
  const conditions = [...match.headers.map(compileHeaderMatcher), ...match.queryParameters.map(compileQueryParameter)];
  if (match.grpc !== undefined) conditions.push({ matches: isGrpcRequest });
  for (const matcher of match.dynamicMetadata) {
    const fits = compileMetadataMatcher(matcher, place);
    conditions.push({ matches: (_head, metadata) => fits(metadata ?? noMetadata) });
  }
  const share = match.runtimeFraction?.defaultValue;
  if (share !== undefined) {
    const limit = shareOf(share);
    conditions.push({ matches: () => random() < limit });
  }
  return { path, conditions };
}

/** envoy route_components.proto `QueryParameterMatcher`. */
export function compileQueryParameter({ name, queryParameterMatchSpecifier: spec }: QueryParameterMatcher): Condition {
  const test = spec.case === 'stringMatch' ? compileStringMatcher(spec.value) : undefined;
  const isPresent = spec.case !== 'presentMatch' || spec.value;
  return {
    matches(head) {
      const value = queryParameter(head.target, name);
      if (value === undefined) return !isPresent;
      return isPresent && (test === undefined || test(value));
    },
  };
}

function compilePath(spec: RouteMatch['pathSpecifier'], ignoresCase: boolean, place: string): PathCondition {
  const fold = (text: string) => (ignoresCase ? text.toLowerCase() : text);
  switch (spec.case) {
    case 'prefix':
      return { kind: 'prefix', text: fold(spec.value), ignoresCase, regex: undefined };
    case 'path':
      return { kind: 'exact', text: fold(spec.value), ignoresCase, regex: undefined };
    case 'pathSeparatedPrefix':
      return { kind: 'segmentPrefix', text: fold(spec.value), ignoresCase, regex: undefined };
    case 'connectMatcher':
      return { kind: 'connect', text: '', ignoresCase, regex: undefined };
    case 'safeRegex':
      // `case_sensitive` is for the others: a regex can say it itself.
      return { kind: 'regex', text: spec.value.regex, ignoresCase: false, regex: regexTest(spec.value.regex) };
    default:
      throw new MizzenError('unsupported-route', `${place}: a path condition of type ${spec.case ?? '(none)'} is not supported`);
  }
}
