import type { Problem } from '../resource.ts';
import type { AuthorizationPolicySpec, AuthorizationRuleSpec, ConditionSpec, OperationSpec, SourceSpec } from '../types/authorization-policy.ts';
import { collect, invalid, rangeProblem } from './checks.ts';
import { selectorProblems } from './policy-selector.ts';

const missing = (path: string, message: string): Problem => ({ code: 'missing-field', path, message });

/** Who calls is known by mutual TLS or a token: what a decision of somebody else (CUSTOM) may depend on is known before both. */
const notForCustom = new Set(['namespaces', 'serviceAccounts', 'trustDomains', 'principals', 'requestPrincipals']);
const keysNotForCustom = new Set(['source.namespace', 'source.serviceAccount', 'source.trustDomain', 'source.principal']);

/** A policy that is not understood as a whole is not taken: half of it might let in whom all of it keeps out. */
export function authorizationPolicyProblems(spec: AuthorizationPolicySpec): Problem[] {
  const { action = 'ALLOW', provider, rules } = spec;
  const problems = selectorProblems(spec);
  if (!rules?.length && (action === 'DENY' || action === 'CUSTOM'))
    problems.push(missing('spec.rules', `without rules a policy with the action ${action} does nothing: write [{}] for all requests`));
  if (action === 'CUSTOM' && !provider?.name)
    problems.push(missing('spec.provider.name', 'the action CUSTOM needs to know whom to ask: an extensionProvider of the mesh'));
  if (action !== 'CUSTOM' && provider !== undefined) problems.push(invalid('spec.provider', `only the action CUSTOM asks a provider, not ${action}`));
  rules?.forEach((rule, i) => problems.push(...ruleProblems(rule, `spec.rules[${i}]`, action === 'CUSTOM')));
  return problems;
}

function ruleProblems(rule: AuthorizationRuleSpec | null, path: string, isCustom: boolean): Problem[] {
  if (rule === null) return [invalid(path, 'a rule is an object: write {} for one that all requests meet')];
  const { from, to, when } = rule;
  const problems: Problem[] = [];
  if (from?.length === 0) problems.push(invalid(`${path}.from`, 'nobody is listed: leave it out for everybody'));
  if (to?.length === 0) problems.push(invalid(`${path}.to`, 'nothing is listed: leave it out for everything'));
  from?.forEach((one, i) => problems.push(...sourceProblems(one?.source, `${path}.from[${i}].source`, isCustom)));
  to?.forEach((one, i) => problems.push(...operationProblems(one?.operation, `${path}.to[${i}].operation`)));
  when?.forEach((one, i) => problems.push(...conditionProblems(one ?? {}, `${path}.when[${i}]`, isCustom)));
  return problems;
}

/** `ipBlocks` and `notIpBlocks` are held to the same. */
const fieldName = (field: string) => (field.startsWith('not') ? `${field[3]!.toLowerCase()}${field.slice(4)}` : field);

function sourceProblems(source: SourceSpec | undefined, path: string, isCustom: boolean): Problem[] {
  const given = Object.entries(source ?? {}).filter((entry): entry is [string, readonly string[]] => Array.isArray(entry[1]) && entry[1].length > 0);
  if (given.length === 0) return [invalid(path, 'says nothing of the source: leave `from` out for everybody')];
  const problems = given.flatMap(([field, values]) => {
    const at = `${path}.${field}`;
    const name = fieldName(field);
    if (isCustom && notForCustom.has(name)) return [invalid(at, 'is not known yet when a provider is asked (action CUSTOM)')];
    return [...emptyProblems(values, at), ...values.flatMap((value, i) => sourceValueProblems(name, value, `${at}[${i}]`))];
  });
  const has = (...names: readonly string[]) => given.some(([field]) => names.includes(fieldName(field)));
  if (has('serviceAccounts') && has('principals', 'namespaces'))
    problems.push(invalid(`${path}.serviceAccounts`, 'says it all: it goes with neither principals nor namespaces'));
  return problems;
}

function sourceValueProblems(name: string, value: string, path: string): Problem[] {
  switch (name) {
    case 'ipBlocks':
    case 'remoteIpBlocks':
      return rangeProblems(value, path);
    case 'serviceAccounts':
      return serviceAccountProblems(value, path);
    case 'trustDomains':
      return value.includes('/') ? [invalid(path, `${JSON.stringify(value)} is no trust domain: it holds no /`)] : wildcardProblems(value, path);
    default:
      return [];
  }
}

function operationProblems(operation: OperationSpec | undefined, path: string): Problem[] {
  const given = Object.entries(operation ?? {}).filter((entry): entry is [string, readonly string[]] => Array.isArray(entry[1]) && entry[1].length > 0);
  if (given.length === 0) return [invalid(path, 'says nothing of the operation: leave `to` out for everything')];
  return given.flatMap(([field, values]) => {
    const at = `${path}.${field}`;
    const name = fieldName(field);
    return [
      ...emptyProblems(values, at),
      ...values.flatMap((value, i) => (name === 'ports' ? portProblems(value, `${at}[${i}]`) : name === 'paths' ? pathProblems(value, `${at}[${i}]`) : [])),
    ];
  });
}

function conditionProblems({ key = '', values = [], notValues = [] }: ConditionSpec, path: string, isCustom: boolean): Problem[] {
  if (key === '') return [missing(`${path}.key`, 'which attribute? request.headers[x-version], source.ip, ...')];
  if (values.length + notValues.length === 0) return [missing(`${path}.values`, `what ${key} must be, or must not be (notValues), is missing`)];
  const check = checkOfKey(key);
  if (check === undefined) return [invalid(`${path}.key`, `the attribute ${JSON.stringify(key)} is not known. Known: ${knownKeys.join(', ')}`)];
  if (isCustom && (keysNotForCustom.has(key) || key.startsWith('request.auth.')))
    return [invalid(`${path}.key`, 'is not known yet when a provider is asked (action CUSTOM)')];
  return (['values', 'notValues'] as const).flatMap((field) =>
    ((field === 'values' ? values : notValues) as readonly string[]).flatMap((value, i) =>
      value === '' ? [invalid(`${path}.${field}[${i}]`, 'is empty')] : check(value, `${path}.${field}[${i}]`),
    ),
  );
}

const anything = (): Problem[] => [];
const byKey: Readonly<Record<string, (value: string, path: string) => Problem[]>> = {
  'source.ip': rangeProblems,
  'remote.ip': rangeProblems,
  'source.namespace': anything,
  'source.serviceAccount': serviceAccountProblems,
  'source.principal': anything,
  'source.trustDomain': wildcardProblems,
  'request.auth.principal': anything,
  'request.auth.audiences': anything,
  'request.auth.presenter': anything,
  'destination.ip': rangeProblems,
  'destination.port': portProblems,
  'connection.sni': anything,
};
const knownKeys = [...Object.keys(byKey), 'request.headers[NAME]', 'request.auth.claims[NAME]'];

function checkOfKey(key: string): ((value: string, path: string) => Problem[]) | undefined {
  if (Object.hasOwn(byKey, key)) return byKey[key];
  return /^request\.headers\[[!#$%&'*+\-.^_`|~0-9A-Za-z:]+\]$|^request\.auth\.claims(?:\[[^[\]]+\])+$|^experimental\.envoy\.filters\.[\w.]+\[[^[\]]+\]$/.test(
    key,
  )
    ? anything
    : undefined;
}

const emptyProblems = (values: readonly string[], path: string) => values.flatMap((value, i) => (value === '' ? [invalid(`${path}[${i}]`, 'is empty')] : []));

function rangeProblems(value: string, path: string): Problem[] {
  return collect(rangeProblem(value, path));
}

function portProblems(value: string, path: string): Problem[] {
  return /^\d{1,5}$/.test(value) && Number(value) <= 65535 ? [] : [invalid(path, `${JSON.stringify(value)} is no port: ports are whole numbers up to 65535`)];
}

function serviceAccountProblems(value: string, path: string): Problem[] {
  return /^[^*/]+(?:\/[^*/]+)?$/.test(value) && value.length <= 320
    ? []
    : [invalid(path, `${JSON.stringify(value)} is no service account: write NAME or NAMESPACE/NAME, without *`)];
}

function wildcardProblems(value: string, path: string): Problem[] {
  const at = value.indexOf('*');
  return at < 0 || (value.lastIndexOf('*') === at && (at === 0 || at === value.length - 1))
    ? []
    : [invalid(path, `${JSON.stringify(value)}: one * is taken, at the beginning or at the end`)];
}

/** Without slashes at the ends, in one pass. */
function withoutSlashes(path: string): string {
  let from = 0;
  let to = path.length;
  while (from < to && path[from] === '/') from++;
  while (to > from && path[to - 1] === '/') to--;
  return path.slice(from, to);
}

/** Templates are `{*}` for one segment and `{**}` for all that follows. */
function pathProblems(value: string, path: string): Problem[] {
  const refuse = (why: string) => [invalid(path, `${JSON.stringify(value)}: ${why}`)];
  const isTemplate = value.includes('{*}') || value.includes('{**}');
  const segments = withoutSlashes(value).split('/');
  for (const [i, segment] of segments.entries()) {
    if (segment === '{*}') continue;
    if (segment === '{**}') {
      if (i < segments.length - 1) return refuse('{**} stands for all that follows, so it is the last segment');
      continue;
    }
    if (/[{}]/.test(segment)) return refuse('{ and } are only taken as {*} (one segment) and {**} (the rest)');
    if (isTemplate && !/^[A-Za-z0-9\-._~%!$&'()+,;:@=]+$/.test(segment)) return refuse(`in a template ${JSON.stringify(segment)} is no segment`);
  }
  return isTemplate && !value.startsWith('/') ? refuse('a template begins with /') : [];
}
