import type { AuthorizationRuleSpec, ConditionSpec, OperationSpec, SourceSpec } from '@mizzen/api';
import { type Init, packAny } from '@mizzen/envoy-api';
import type { PermissionSchema, PolicySchema, PrincipalSchema } from '@mizzen/envoy-api/gen/envoy/config/rbac/v3/rbac_pb.js';
import { UriTemplateMatchConfigSchema } from '@mizzen/envoy-api/gen/envoy/extensions/path/match/uri_template/v3/uri_template_match_pb.js';
import { beginning, cidrRange, claim, claimAmong, exactly, filterValues, headerMatcher, quoted, regex, type Text, wildcard } from './value-matchers.ts';

type Permission = Init<typeof PermissionSchema>;
type Principal = Init<typeof PrincipalSchema>;

/** Where rules are to hold. */
export interface RulePlace {
  /** Of the policy. */
  readonly namespace: string;
  /** The mesh's own and those that it is known by too; the first is its own. */
  readonly trustDomains: readonly string[];
  /** Of connections of which nobody knows what is spoken inside, HTTP is not known. */
  readonly isBytes: boolean;
  /** The port that the workload knows, where connections arrive at another; undefined: they arrive where they were going. */
  readonly port: number | undefined;
  /** A rule that cannot be told here: of one that lets in, nothing is left; of one that keeps out, the rest is, which keeps out more. */
  readonly isForAllowing: boolean;
}

/** The rule cannot be met here. */
export const never: Init<typeof PolicySchema> = {
  permissions: [{ rule: { case: 'notRule', value: { rule: { case: 'any', value: true } } } }],
  principals: [{ identifier: { case: 'notId', value: { identifier: { case: 'any', value: true } } } }],
};

/** One rule of an AuthorizationPolicy as Envoy's RBAC says it; undefined: it lets nobody in here. */
export function policyOfRule({ from, to, when = [] }: AuthorizationRuleSpec, place: RulePlace): Init<typeof PolicySchema> | undefined {
  const onPermission: Part<Permission>[] = [];
  const onPrincipal: Part<Principal>[] = [];
  for (const condition of when) {
    const key = condition.key ?? '';
    const permission = permissionOfKey(key, place);
    if (permission !== undefined) onPermission.push(part(permission, condition));
    else onPrincipal.push(part(principalOfKey(key, place) ?? unknownKey, condition));
  }
  const sources = from?.length ? from.map(({ source }) => [...sourceParts(source ?? {}, place), ...onPrincipal]) : [onPrincipal];
  const operations = to?.length ? to.map(({ operation }) => [...operationParts(operation ?? {}, place), ...onPermission]) : [onPermission];
  const permissions = operations.map((parts) => allOf(parts, permissions_, place));
  const principals = sources.map((parts) => allOf(parts, principals_, place));
  if (permissions.includes(undefined) || principals.includes(undefined)) return undefined;
  return { permissions: permissions as Permission[], principals: principals as Principal[] };
}

/** How values of one field become one condition; undefined: this cannot be known where the rule is to hold. */
type Meaning<Condition> = ((values: readonly string[]) => Condition) | 'unknowable';

interface Part<Condition> {
  readonly meaning: Meaning<Condition>;
  readonly values: readonly string[];
  readonly notValues: readonly string[];
}

const part = <Condition>(meaning: Meaning<Condition>, { values = [], notValues = [] }: Pick<ConditionSpec, 'values' | 'notValues'>): Part<Condition> => ({
  meaning,
  values,
  notValues,
});

interface Algebra<Condition> {
  readonly all: (conditions: readonly Condition[]) => Condition;
  readonly any: (conditions: readonly Condition[]) => Condition;
  readonly not: (condition: Condition) => Condition;
  readonly anything: Condition;
}

const permissions_: Algebra<Permission> = {
  all: (rules) => ({ rule: { case: 'andRules', value: { rules: [...rules] } } }),
  any: (rules) => (rules.length === 1 ? rules[0]! : { rule: { case: 'orRules', value: { rules: [...rules] } } }),
  not: (value) => ({ rule: { case: 'notRule', value } }),
  anything: { rule: { case: 'any', value: true } },
};
const principals_: Algebra<Principal> = {
  all: (ids) => ({ identifier: { case: 'andIds', value: { ids: [...ids] } } }),
  any: (ids) => (ids.length === 1 ? ids[0]! : { identifier: { case: 'orIds', value: { ids: [...ids] } } }),
  not: (value) => ({ identifier: { case: 'notId', value } }),
  anything: { identifier: { case: 'any', value: true } },
};

function allOf<Condition>(parts: readonly Part<Condition>[], algebra: Algebra<Condition>, { isForAllowing }: RulePlace): Condition | undefined {
  const conditions: Condition[] = [];
  for (const { meaning, values, notValues } of parts) {
    if (values.length + notValues.length === 0) continue;
    if (meaning === 'unknowable') {
      if (isForAllowing) return undefined;
      continue;
    }
    if (values.length > 0) conditions.push(meaning(values));
    if (notValues.length > 0) conditions.push(algebra.not(meaning(notValues)));
  }
  return conditions.length === 0 ? algebra.anything : algebra.all(conditions);
}

const eachPermission =
  (one: (value: string) => Permission): Meaning<Permission> =>
  (values) =>
    permissions_.any(values.map(one));
const eachPrincipal =
  (one: (value: string) => Principal): Meaning<Principal> =>
  (values) =>
    principals_.any(values.map(one));
/** Writes of such keys are refused. */
const unknownKey: Meaning<Principal> = 'unknowable';

function sourceParts(source: SourceSpec, place: RulePlace): Part<Principal>[] {
  const of = (key: string, values: readonly string[] | undefined, notValues: readonly string[] | undefined) =>
    part(principalOfKey(key, place)!, { values: values ?? [], notValues: notValues ?? [] });
  return [
    of('source.principal', source.principals, source.notPrincipals),
    of('request.auth.principal', source.requestPrincipals, source.notRequestPrincipals),
    of('source.serviceAccount', source.serviceAccounts, source.notServiceAccounts),
    of('source.trustDomain', source.trustDomains, source.notTrustDomains),
    of('source.namespace', source.namespaces, source.notNamespaces),
    of('remote.ip', source.remoteIpBlocks, source.notRemoteIpBlocks),
    of('source.ip', source.ipBlocks, source.notIpBlocks),
  ];
}

function operationParts({ hosts, notHosts, ports, notPorts, methods, notMethods, paths, notPaths }: OperationSpec, place: RulePlace): Part<Permission>[] {
  const of = (meaning: Meaning<Permission>, values: readonly string[] | undefined, notValues: readonly string[] | undefined) =>
    part(meaning, { values: values ?? [], notValues: notValues ?? [] });
  const http = (meaning: Meaning<Permission>) => (place.isBytes ? 'unknowable' : meaning);
  return [
    of(http(eachPermission((host) => ({ rule: { case: 'header', value: headerMatcher(':authority', host, true) } }))), hosts, notHosts),
    of(http(eachPermission((method) => ({ rule: { case: 'header', value: headerMatcher(':method', method) } }))), methods, notMethods),
    of(http(eachPermission(pathPermission)), paths, notPaths),
    of(
      eachPermission((port) => portPermission(port, place)),
      ports,
      notPorts,
    ),
  ];
}

function pathPermission(path: string): Permission {
  if (!path.includes('{*}') && !path.includes('{**}')) return { rule: { case: 'urlPath', value: { rule: { case: 'path', value: wildcard(path) } } } };
  const pathTemplate = path.replaceAll('{*}', '*').replaceAll('{**}', '**');
  return { rule: { case: 'uriTemplate', value: { name: 'uri-template', typedConfig: packAny(UriTemplateMatchConfigSchema, { pathTemplate }) } } };
}

function portPermission(port: string, place: RulePlace): Permission {
  if (place.port === undefined) return { rule: { case: 'destinationPort', value: Number(port) } };
  return Number(port) === place.port ? permissions_.anything : permissions_.not(permissions_.anything);
}

/** Attributes of what is done (istio/api "Authorization Policy Conditions"). */
function permissionOfKey(key: string, place: RulePlace): Meaning<Permission> | undefined {
  if (key === 'destination.ip') return eachPermission((range) => ({ rule: { case: 'destinationIp', value: cidrRange(range) } }));
  if (key === 'destination.port') return eachPermission((port) => portPermission(port, place));
  if (key === 'connection.sni') return eachPermission((name) => ({ rule: { case: 'requestedServerName', value: wildcard(name) } }));
  const [, filter, name] = /^experimental\.(envoy\.filters\.[\w.]+)\[([^[\]]+)\]$/.exec(key) ?? [];
  if (filter === undefined) return undefined;
  return (values) => ({ rule: { case: 'metadata', value: filterValues(filter, name!, values) } });
}

/** Attributes of who does it. */
function principalOfKey(key: string, place: RulePlace): Meaning<Principal> | undefined {
  const named = (text: Text): Principal => ({ identifier: { case: 'authenticated', value: { principalName: text } } });
  const http = (meaning: Meaning<Principal>) => (place.isBytes ? 'unknowable' : meaning);
  switch (key) {
    case 'source.ip':
      return eachPrincipal((range) => ({ identifier: { case: 'directRemoteIp', value: cidrRange(range) } }));
    case 'remote.ip':
      return eachPrincipal((range) => ({ identifier: { case: 'remoteIp', value: cidrRange(range) } }));
    case 'source.namespace':
      return eachPrincipal((namespace) => named(namespaceName(namespace)));
    case 'source.serviceAccount':
      return eachPrincipal((account) => named(serviceAccountName(account, place.namespace)));
    case 'source.trustDomain':
      return (values) => principals_.any(values.flatMap((domain) => withAliases(domain, place)).map((domain) => named(trustDomainName(domain))));
    case 'source.principal':
      return (values) =>
        principals_.any(values.flatMap((principal) => principalsWithAliases(principal, place)).map((principal) => named(principalName(principal))));
    case 'request.auth.principal':
      return http(eachPrincipal(requestPrincipal));
    case 'request.auth.audiences':
      return http((values) => ({ identifier: { case: 'metadata', value: claimAmong(['aud'], values) } }));
    case 'request.auth.presenter':
      return http((values) => ({ identifier: { case: 'metadata', value: claimAmong(['azp'], values) } }));
  }
  const header = /^request\.headers\[([^[\]]+)\]$/.exec(key)?.[1];
  if (header !== undefined) return http(eachPrincipal((value) => ({ identifier: { case: 'header', value: headerMatcher(header, value) } })));
  if (/^request\.auth\.claims(?:\[[^[\]]+\])+$/.test(key)) {
    const path = [...key.matchAll(/\[([^[\]]+)\]/g)].map(([, name]) => name!);
    return http((values) => ({ identifier: { case: 'metadata', value: claimAmong(path, values) } }));
  }
  return undefined;
}

function namespaceName(namespace: string): Text {
  if (!namespace.includes('*')) return { matchPattern: { case: 'contains', value: `/ns/${namespace}/` } };
  return regex(`.*/ns/${namespace.split('*').map(quoted).join('[^/]*')}/.*`);
}

function serviceAccountName(account: string, ownNamespace: string): Text {
  const [namespace, name] = account.includes('/') ? (account.split('/') as [string, string]) : [ownNamespace, account];
  // The identities of others may say more between and behind the two.
  return regex(`spiffe://.+/ns/${quoted(namespace)}/(.+/|)sa/${quoted(name)}(/.+)?`);
}

function trustDomainName(domain: string): Text {
  if (domain === '*') return beginning('spiffe://');
  if (!domain.includes('*')) return beginning(`spiffe://${domain}/`);
  return regex(`spiffe://${domain.split('*').map(quoted).join('[^/]*')}/.*`);
}

function principalName(principal: string): Text {
  if (principal === '*') return regex('.+');
  if (principal.startsWith('*')) return regex(`spiffe://.*${quoted(principal.slice(1))}`);
  return principal.endsWith('*') ? beginning(`spiffe://${principal.slice(0, -1)}`) : exactly(`spiffe://${principal}`);
}

/** `cluster.local` stands for the mesh's own trust domain, whatever it is called. `domain` may begin or end in `*`. */
function isOwn(domain: string, { trustDomains }: RulePlace): boolean {
  if (domain === '*') return false;
  const covers = (own: string) =>
    domain.startsWith('*') ? own.endsWith(domain.slice(1)) : domain.endsWith('*') ? own.startsWith(domain.slice(0, -1)) : own === domain;
  return domain === 'cluster.local' || trustDomains.some(covers);
}

function withAliases(domain: string, place: RulePlace): readonly string[] {
  return isOwn(domain, place) ? [...new Set([domain, ...place.trustDomains])] : [domain];
}

/**
 * What is said of one name of the mesh's trust domain holds for all of them (istio/api mesh config.proto `trust_domain_aliases`; Istio's
 * trustdomain.Bundle). A wildcard in the trust domain stays, since it may cover foreign domains too; the names that it does not cover are added.
 */
function principalsWithAliases(principal: string, place: RulePlace): readonly string[] {
  const slash = principal.indexOf('/');
  // `td*` covers all identities of the trust domains that begin so. `*foo` may end anywhere, so it names no trust domain.
  const [domain, rest] = slash < 0 ? [principal.endsWith('*') ? principal : '', '/*'] : [principal.slice(0, slash), principal.slice(slash)];
  if (domain.startsWith('*') && !/^\/ns\/[^/]+\/sa\//.test(rest)) return [principal];
  if (domain === '' || !isOwn(domain, place)) return [principal];
  const others = place.trustDomains.map((own) => `${own}${rest}`);
  return domain.includes('*') ? [...new Set([principal, ...others])] : others;
}

/** `ISSUER/SUBJECT` of a token; the issuer may be a URL, so the last slash divides them. */
function requestPrincipal(value: string): Principal {
  const [issuer, subject] = requestPrincipalParts(value);
  const both = [claim('iss', issuer), claim('sub', subject)].map((matcher): Principal => ({ identifier: { case: 'metadata', value: matcher } }));
  return principals_.all(both);
}

function requestPrincipalParts(value: string): [issuer: Text, subject: Text] {
  const anything = regex('.+');
  const slash = value.lastIndexOf('/');
  if (value === '*') return [anything, anything];
  if (slash < 0) {
    if (value.startsWith('*')) return [anything, wildcard(value)];
    return value.endsWith('*') ? [wildcard(value), anything] : [exactly(value), exactly('')];
  }
  const [issuer, subject] = [value.slice(0, slash), value.slice(slash + 1)];
  if (value.startsWith('*')) return [wildcard(issuer), exactly(subject)];
  return [exactly(issuer), value.endsWith('*') ? wildcard(subject) : exactly(subject)];
}
