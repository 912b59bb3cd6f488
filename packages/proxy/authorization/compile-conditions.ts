import { isFieldSet } from '@bufbuild/protobuf';
import { MizzenError } from '@mizzen/common';
import { unpackAny } from '@mizzen/envoy-api';
import type { CidrRange } from '@mizzen/envoy-api/gen/envoy/config/core/v3/address_pb.js';
import type { TypedExtensionConfig } from '@mizzen/envoy-api/gen/envoy/config/core/v3/extension_pb.js';
import { type Permission, PermissionSchema, type Principal, PrincipalSchema } from '@mizzen/envoy-api/gen/envoy/config/rbac/v3/rbac_pb.js';
import type { HeaderMatcher } from '@mizzen/envoy-api/gen/envoy/config/route/v3/route_components_pb.js';
import { UriTemplateMatchConfigSchema } from '@mizzen/envoy-api/gen/envoy/extensions/path/match/uri_template/v3/uri_template_match_pb.js';
import type { PathMatcher } from '@mizzen/envoy-api/gen/envoy/type/matcher/v3/path_pb.js';
import type { StringMatcher } from '@mizzen/envoy-api/gen/envoy/type/matcher/v3/string_pb.js';
import { AddressRanges } from '../net/filter-chain.ts';
import { compileHeaderMatcher, compileStringMatcher } from '../route/matchers.ts';
import { compileMetadataMatcher } from '../route/metadata-matcher.ts';
import { isWithheld } from '../xds/supported-fields.ts';
import { and, constant, type Node, not, or, type PathSpan, peerTest, test } from './node.ts';
import { compilePathTemplate } from './path-template.ts';

/** envoy rbac.proto `Permission`: what is done. Throws MizzenError for what cannot be honoured: a rule with a gap would let in whom it is to keep out. */
export function compilePermission({ rule }: Permission, place: string): Node {
  if (isWithheld(`envoy.config.rbac.v3.Permission.${rule.case}`)) throw unsupported(`a permission of type ${rule.case}`, place);
  switch (rule.case) {
    case 'andRules':
      return and(nonEmpty(rule.value.rules, place).map((inner) => compilePermission(inner, place)));
    case 'orRules':
      return or(nonEmpty(rule.value.rules, place).map((inner) => compilePermission(inner, place)));
    case 'notRule':
      return not(compilePermission(rule.value, place));
    case 'any':
      return anything(rule.value, place);
    case 'header':
      return header(rule.value);
    case 'urlPath':
      return urlPath(rule.value, place);
    case 'uriTemplate':
      return uriTemplate(rule.value, place);
    case 'destinationIp':
      return address(rule.value, ({ info }) => info.localAddress);
    case 'destinationPort': {
      const port = rule.value;
      return test(({ info }) => info.localPort === port);
    }
    case 'destinationPortRange': {
      const { start, end } = rule.value;
      return test(({ info }) => info.localPort >= start && info.localPort < end);
    }
    case 'requestedServerName': {
      const fits = compileStringMatcher(rule.value);
      return test(({ info }) => fits(info.serverName));
    }
    case 'metadata':
      return test(compileMetadataMatcher(rule.value, place));
    default:
      throw unsupported(`a permission of type ${rule.case ?? firstField(PermissionSchema)}`, place);
  }
}

/** envoy rbac.proto `Principal`: who does it. */
export function compilePrincipal({ identifier }: Principal, place: string): Node {
  switch (identifier.case) {
    case 'andIds':
      return and(nonEmpty(identifier.value.ids, place).map((inner) => compilePrincipal(inner, place)));
    case 'orIds':
      return or(nonEmpty(identifier.value.ids, place).map((inner) => compilePrincipal(inner, place)));
    case 'notId':
      return not(compilePrincipal(identifier.value, place));
    case 'any':
      return anything(identifier.value, place);
    case 'authenticated': {
      const name = identifier.value.principalName;
      if (name === undefined) return peerTest((peer) => peer !== undefined);
      const fits = compileStringMatcher(name);
      return peerTest((peer) => peer !== undefined && fits(peer.uri));
    }
    case 'sourceIp':
    case 'directRemoteIp':
      return address(identifier.value, ({ info }) => info.remoteAddress);
    case 'remoteIp':
      return address(identifier.value, ({ remoteAddress }) => remoteAddress);
    case 'header':
      return header(identifier.value);
    case 'urlPath':
      return urlPath(identifier.value, place);
    case 'metadata':
      return test(compileMetadataMatcher(identifier.value, place));
    default:
      throw unsupported(`a principal of type ${identifier.case ?? firstField(PrincipalSchema)}`, place);
  }
}

const unsupported = (what: string, place: string) => new MizzenError('unsupported-rbac', `${place}: ${what} is not supported`);
const firstField = (_schema: unknown) => '(none)';

function nonEmpty<T>(list: readonly T[], place: string): readonly T[] {
  if (list.length === 0) throw new MizzenError('invalid-rbac', `${place}: an empty list of conditions`);
  return list;
}

function anything(value: boolean, place: string): Node {
  if (!value) throw new MizzenError('invalid-rbac', `${place}: any must be true`);
  return constant(true);
}

function header(matcher: HeaderMatcher): Node {
  const condition = compileHeaderMatcher(matcher);
  // What a connection has no headers for is not met, inverted or not.
  return test(({ head }) => head !== undefined && condition.matches(head));
}

function urlPath({ rule }: PathMatcher, place: string): Node {
  if (rule.case !== 'path') throw unsupported('a path matcher without a path', place);
  const fits = compileStringMatcher(rule.value);
  return test(({ head, path }) => head !== undefined && fits(path), spansOf(rule.value));
}

/** Where a matcher can be met, for the index. */
function spansOf({ matchPattern, ignoreCase }: StringMatcher): readonly PathSpan[] | undefined {
  if (ignoreCase || (matchPattern.case !== 'exact' && matchPattern.case !== 'prefix')) return undefined;
  return [{ text: matchPattern.value, isPrefix: matchPattern.case === 'prefix' }];
}

function uriTemplate(extension: TypedExtensionConfig, place: string): Node {
  const config = unpackAny(UriTemplateMatchConfigSchema, extension.typedConfig);
  if (config === undefined || !isFieldSet(config, UriTemplateMatchConfigSchema.field.pathTemplate))
    throw unsupported(`the path matcher ${extension.name}`, place);
  const { fits, prefix } = compilePathTemplate(config.pathTemplate, place);
  return test(({ head, path }) => head !== undefined && fits(path), [{ text: prefix, isPrefix: true }]);
}

function address({ addressPrefix, prefixLen }: CidrRange, of: (subject: Parameters<Node['matches']>[0]) => string): Node {
  const ranges = new AddressRanges([{ address: addressPrefix, prefixLength: prefixLen ?? 0 }]);
  return test((subject) => ranges.longestMatch(of(subject)) >= 0);
}
