import type { Problem } from '../resource.ts';
import type {
  CorsPolicySpec,
  DestinationSpec,
  HeaderOperationsSpec,
  HttpMatchSpec,
  HttpRouteSpec,
  RouteDestinationSpec,
  StringMatchSpec,
  TlsMatchSpec,
  VirtualServiceSpec,
} from '../types/virtual-service.ts';
import { collect, durationProblem, hostProblem, invalid, percentProblem, portProblem } from './checks.ts';
import { grpcStatusNames, grpcStatusOf } from './grpc-status.ts';
import { regexProblem, substitutionProblem } from './regex.ts';

const token = /^[!#$%&'*+\-.^_`|~0-9A-Za-z]+$/;

function corsProblems(policy: CorsPolicySpec, path: string, problems: Problem[]): void {
  problems.push(...collect(durationProblem(policy.maxAge, `${path}.maxAge`, 0)));
  policy.allowOrigins?.forEach((origin, i) => {
    if (origin.exact === undefined && origin.prefix === undefined && origin.regex === undefined)
      problems.push(invalid(`${path}.allowOrigins[${i}]`, 'one of exact, prefix and regex is needed'));
    if (origin.regex !== undefined) problems.push(...collect(regexProblem(origin.regex, `${path}.allowOrigins[${i}].regex`)));
  });
  for (const field of ['allowMethods', 'allowHeaders', 'exposeHeaders'] as const)
    policy[field]?.forEach((name, i) => {
      if (!token.test(name)) problems.push(invalid(`${path}.${field}[${i}]`, `${JSON.stringify(name)} is no name of a method or header`));
    });
}

/** Rules of Istio's own validation of VirtualService that can be decided from the object alone. */
export function virtualServiceProblems(spec: VirtualServiceSpec): Problem[] {
  const problems: Problem[] = [];
  if (!spec.hosts?.length) problems.push(...delegateProblems(spec));
  spec.hosts?.forEach((host, i) => problems.push(...collect(hostProblem(host, `spec.hosts[${i}]`))));
  const namedGateways = spec.gateways?.filter((gateway) => gateway !== 'mesh') ?? [];
  if (spec.hosts?.includes('*') && (namedGateways.length === 0 || spec.gateways?.includes('mesh'))) {
    problems.push(invalid('spec.hosts', 'the host "*" is only allowed when the VirtualService is bound to named gateways, not to the mesh'));
  }
  if (!spec.http?.length && !spec.tls?.length && !spec.tcp?.length)
    problems.push({ code: 'missing-field', path: 'spec.http', message: 'one of http, tls or tcp is required' });
  spec.http?.forEach((route, i) => routeProblems(route, `spec.http[${i}]`, problems));
  for (const kind of ['tcp', 'tls'] as const)
    spec[kind]?.forEach((route, i) => {
      const path = `spec.${kind}[${i}]`;
      weightProblems(route.route, path, problems);
      if (!route.route?.length) problems.push({ code: 'missing-field', path: `${path}.route`, message: 'where connections go is required' });
      (route.match as readonly TlsMatchSpec[] | undefined)?.forEach((match, j) => l4MatchProblems(match, `${path}.match[${j}]`, problems));
      if (kind === 'tls' && !route.match?.length)
        problems.push({ code: 'missing-field', path: `${path}.match`, message: 'TLS is routed by server names: a match with sniHosts is required' });
    });
  spec.tls?.forEach((route, i) =>
    route.match?.forEach((match, j) => {
      if (!match.sniHosts?.length)
        problems.push({ code: 'missing-field', path: `spec.tls[${i}].match[${j}].sniHosts`, message: 'at least one server name is required' });
      for (const [k, name] of (match.sniHosts ?? []).entries())
        if (!spec.hosts?.some((host) => isWithin(name, host)))
          problems.push(invalid(`spec.tls[${i}].match[${j}].sniHosts[${k}]`, `${JSON.stringify(name)} is not among the hosts of this VirtualService`));
    }),
  );
  return problems;
}

/** One without hosts is for others to leave routes to. */
function delegateProblems(spec: VirtualServiceSpec): Problem[] {
  const only = 'a VirtualService without hosts is a delegate: it has http routes and nothing else';
  if (spec.gateways?.length) return [invalid('spec.gateways', only)];
  if (spec.tcp?.length || spec.tls?.length || !spec.http?.length)
    return [{ code: 'missing-field', path: 'spec.hosts', message: `at least one host is required (${only})` }];
  return spec.http.flatMap((route, i) => (route.delegate ? [invalid(`spec.http[${i}].delegate`, 'a delegate has no delegates: one level only')] : []));
}

function isWithin(name: string, host: string): boolean {
  return host === '*' || host === name || (host.startsWith('*.') && name.endsWith(host.slice(1)));
}

const subnet = /^(?:\d{1,3}(?:\.\d{1,3}){3}|[0-9a-f:]+)(?:\/\d{1,3})?$/i;

function l4MatchProblems(match: TlsMatchSpec, path: string, problems: Problem[]): void {
  match.destinationSubnets?.forEach((text, i) => {
    if (!subnet.test(text)) problems.push(invalid(`${path}.destinationSubnets[${i}]`, `${JSON.stringify(text)} is no range of addresses such as 10.1.0.0/16`));
  });
  match.sniHosts?.forEach((name, i) => problems.push(...collect(hostProblem(name, `${path}.sniHosts[${i}]`))));
  if (match.port !== undefined) problems.push(...collect(portProblem(match.port, `${path}.port`)));
}

function weightProblems(targets: readonly RouteDestinationSpec[] | undefined, path: string, problems: Problem[]): void {
  targets?.forEach((target, i) => {
    problems.push(...destinationProblems(target.destination, `${path}.route[${i}].destination`));
    if (target.weight !== undefined && (!Number.isInteger(target.weight) || target.weight < 0))
      problems.push(invalid(`${path}.route[${i}].weight`, `${target.weight} is no weight: weights are whole numbers of at least 0`));
  });
  if ((targets?.length ?? 0) > 1 && targets!.every((target) => !target.weight))
    problems.push(invalid(`${path}.route`, 'several destinations need weights, at least one of them above 0'));
}

/** envoy "x-envoy-retry-on" and "x-envoy-retry-grpc-on", as far as Istio takes them. */
const retryConditions = new Set([
  ...['5xx', 'gateway-error', 'reset', 'reset-before-request', 'connect-failure', 'retriable-4xx', 'refused-stream', 'retriable-status-codes'],
  ...[
    'retriable-headers',
    'envoy-ratelimited',
    'http3-post-connect-failure',
    'cancelled',
    'deadline-exceeded',
    'internal',
    'resource-exhausted',
    'unavailable',
  ],
]);

function unknownCondition(retryOn: string | undefined): string | undefined {
  return retryOn
    ?.split(',')
    .map((condition) => condition.trim())
    .find((condition) => condition !== '' && !retryConditions.has(condition) && !/^[1-5]\d\d$/.test(condition));
}

const faultStatus = (status: number) => Number.isInteger(status) && status >= 200 && status <= 599;

function routeProblems(route: HttpRouteSpec, path: string, problems: Problem[]): void {
  const actions = [
    route.route?.length ? 'route' : '',
    route.redirect ? 'redirect' : '',
    route.directResponse ? 'directResponse' : '',
    route.delegate ? 'delegate' : '',
  ].filter(Boolean);
  if (actions.length === 0)
    problems.push({ code: 'missing-field', path: `${path}.route`, message: 'one of route, redirect, directResponse or delegate is required' });
  if (actions.length > 1) problems.push(invalid(path, `only one of ${actions.join(' and ')} may be set`));
  if (route.redirect && route.rewrite) problems.push(invalid(`${path}.rewrite`, 'a redirect cannot also rewrite'));

  route.match?.forEach((match, i) => matchProblems(match, `${path}.match[${i}]`, problems));
  weightProblems(route.route, path, problems);
  if (route.delegate && !route.delegate.name)
    problems.push({ code: 'missing-field', path: `${path}.delegate.name`, message: 'the name of a VirtualService is required' });
  const unknown = unknownCondition(route.retries?.retryOn);
  if (unknown !== undefined)
    problems.push(
      invalid(`${path}.retries.retryOn`, `${JSON.stringify(unknown)} is no condition to try again on: a status, or one of ${[...retryConditions].join(', ')}`),
    );
  route.route?.forEach((target, i) => {
    problems.push(
      ...headerProblems(target.headers?.request, `${path}.route[${i}].headers.request`),
      ...headerProblems(target.headers?.response, `${path}.route[${i}].headers.response`),
    );
  });
  problems.push(...headerProblems(route.headers?.request, `${path}.headers.request`), ...headerProblems(route.headers?.response, `${path}.headers.response`));

  problems.push(
    ...collect(
      durationProblem(route.timeout, `${path}.timeout`, 0),
      durationProblem(route.retries?.perTryTimeout, `${path}.retries.perTryTimeout`, 0),
      durationProblem(route.retries?.backoff, `${path}.retries.backoff`),
      percentProblem(route.mirrorPercentage?.value, `${path}.mirrorPercentage.value`),
      percentProblem(route.fault?.delay?.percentage?.value, `${path}.fault.delay.percentage.value`),
      percentProblem(route.fault?.abort?.percentage?.value, `${path}.fault.abort.percentage.value`),
      durationProblem(route.fault?.delay?.fixedDelay, `${path}.fault.delay.fixedDelay`),
    ),
  );
  if (route.corsPolicy) corsProblems(route.corsPolicy, `${path}.corsPolicy`, problems);
  const attempts = route.retries?.attempts;
  if (attempts !== undefined && (!Number.isInteger(attempts) || attempts < 0))
    problems.push(invalid(`${path}.retries.attempts`, `${attempts} is no number of attempts: it must be a whole number of at least 0`));
  if (route.fault?.delay && route.fault.delay.fixedDelay === undefined)
    problems.push({ code: 'missing-field', path: `${path}.fault.delay.fixedDelay`, message: 'a delay needs fixedDelay, for example 7s' });
  const abort = route.fault?.abort;
  if (abort && abort.httpStatus === undefined && abort.grpcStatus === undefined)
    problems.push({ code: 'missing-field', path: `${path}.fault.abort.httpStatus`, message: 'an abort needs httpStatus (or grpcStatus)' });
  if (abort?.grpcStatus !== undefined && grpcStatusOf(abort.grpcStatus) === undefined)
    problems.push(invalid(`${path}.fault.abort.grpcStatus`, `${JSON.stringify(abort.grpcStatus)} is no status of gRPC: one of ${grpcStatusNames.join(', ')}`));
  if (abort?.httpStatus !== undefined && !faultStatus(abort.httpStatus))
    problems.push(invalid(`${path}.fault.abort.httpStatus`, `${abort.httpStatus} is no status to abort with: use 200 to 599`));
  if (route.mirror) problems.push(...destinationProblems(route.mirror, `${path}.mirror`));
  route.mirrors?.forEach((mirror, i) => {
    if (!mirror.destination) problems.push({ code: 'missing-field', path: `${path}.mirrors[${i}].destination`, message: 'a mirror needs a destination' });
    else problems.push(...destinationProblems(mirror.destination, `${path}.mirrors[${i}].destination`));
    problems.push(...collect(percentProblem(mirror.percentage?.value, `${path}.mirrors[${i}].percentage.value`)));
  });
  if (route.redirect?.redirectCode !== undefined && ![301, 302, 303, 307, 308].includes(route.redirect.redirectCode)) {
    problems.push(invalid(`${path}.redirect.redirectCode`, `${route.redirect.redirectCode} is no redirect: use 301, 302, 303, 307 or 308`));
  }
  if (route.directResponse && !faultStatus(route.directResponse.status))
    problems.push(invalid(`${path}.directResponse.status`, `${route.directResponse.status} is no status to answer with: use 200 to 599`));
  if (route.rewrite?.uriRegexRewrite) {
    const { match, rewrite } = route.rewrite.uriRegexRewrite;
    if (match === undefined || rewrite === undefined)
      problems.push({ code: 'missing-field', path: `${path}.rewrite.uriRegexRewrite`, message: 'both match and rewrite are required' });
    else
      problems.push(
        ...collect(
          regexProblem(match, `${path}.rewrite.uriRegexRewrite.match`),
          substitutionProblem(match, rewrite, `${path}.rewrite.uriRegexRewrite.rewrite`),
        ),
      );
    if (route.rewrite.uri !== undefined) problems.push(invalid(`${path}.rewrite`, 'only one of uri and uriRegexRewrite may be set'));
  }
}

function matchProblems(match: HttpMatchSpec, path: string, problems: Problem[]): void {
  for (const field of ['uri', 'scheme', 'method', 'authority'] as const) {
    const value = match[field];
    if (value) problems.push(...stringMatchProblems(value, `${path}.${field}`, true));
  }
  for (const field of ['headers', 'withoutHeaders', 'queryParams'] as const) {
    for (const [name, value] of Object.entries(match[field] ?? {})) {
      if (name === '') problems.push(invalid(`${path}.${field}`, 'a name must not be empty'));
      if (name.startsWith('@')) {
        if (field === 'queryParams' || !/^@request\.auth\.claims(?:\.[^.[\]]+|(?:\[[^[\]]+\])|\.)+$/.test(name))
          problems.push(invalid(`${path}.${field}`, `${JSON.stringify(name)} is not known: @request.auth.claims.NAME or @request.auth.claims[NAME] is`));
      } else if (field !== 'queryParams' && name !== name.toLowerCase())
        problems.push(invalid(`${path}.${field}.${name}`, `header names are matched in lower case: write ${JSON.stringify(name.toLowerCase())}`));
      problems.push(...stringMatchProblems(value, `${path}.${field}.${name}`, false));
    }
  }
  if (match.port !== undefined) problems.push(...collect(portProblem(match.port, `${path}.port`)));
}

function stringMatchProblems(match: StringMatchSpec, path: string, mustBeSet: boolean): Problem[] {
  if (match === null) return [];
  if (mustBeSet && match.exact === undefined && match.prefix === undefined && match.regex === undefined)
    return [{ code: 'missing-field', path, message: 'one of exact, prefix or regex is required' }];
  if (match.prefix === '') return [invalid(`${path}.prefix`, 'a prefix must not be empty')];
  return match.regex === undefined ? [] : collect(regexProblem(match.regex, `${path}.regex`));
}

function destinationProblems(destination: DestinationSpec | undefined, path: string): Problem[] {
  if (!destination?.host) return [{ code: 'missing-field', path: `${path}.host`, message: 'a destination needs a host' }];
  return collect(
    hostProblem(destination.host, `${path}.host`, false),
    destination.port?.number === undefined ? undefined : portProblem(destination.port.number, `${path}.port.number`),
  );
}

const headerName = /^[!#$%&'*+\-.^_`|~0-9A-Za-z]+$/;

function headerProblems(operations: HeaderOperationsSpec | undefined, path: string): Problem[] {
  const problems: Problem[] = [];
  for (const field of ['set', 'add'] as const) {
    for (const [name, value] of Object.entries(operations?.[field] ?? {})) {
      if (!headerName.test(name)) problems.push(invalid(`${path}.${field}`, `${JSON.stringify(name)} is no header name (RFC 9110 section 5.1)`));
      if (/[\x00-\x08\x0a-\x1f\x7f]/.test(value)) problems.push(invalid(`${path}.${field}.${name}`, 'a header value must not hold control characters'));
      // Envoy's command operators (%DOWNSTREAM_REMOTE_ADDRESS%); a lone percent sign would have the whole table refused.
      if (/%/.test(value.replace(/%%|%[A-Z_0-9]+(?:\([^)%]*\))?(?::\d+)?%/g, '')))
        problems.push(invalid(`${path}.${field}.${name}`, 'a percent sign begins an operator such as %REQ(x-name)%; write %% for the sign itself'));
    }
  }
  operations?.remove?.forEach(
    (name, i) => headerName.test(name) || problems.push(invalid(`${path}.remove[${i}]`, `${JSON.stringify(name)} is no header name (RFC 9110 section 5.1)`)),
  );
  return problems;
}
