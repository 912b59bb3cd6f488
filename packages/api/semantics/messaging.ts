import { parseDurationMs } from '@mizzen/common';
import type { Problem } from '../resource.ts';
import type { ComponentSpec, MessageRouteSpec, ResiliencySpec, SubscriptionSpec } from '../types/messaging.ts';
import { invalid } from './checks.ts';

/** What each type of component takes in its metadata; scopes and the like are taken by all. */
const componentTypes: Readonly<Record<string, { readonly takes: readonly string[]; readonly needs: readonly string[] }>> = {
  'pubsub.mizzen': { takes: ['address', 'plaintext'], needs: [] },
  'pubsub.jetstream': { takes: ['natsURL', 'stream', 'token', 'user', 'password'], needs: ['natsURL'] },
  'pubsub.rabbitmq': { takes: ['connectionString', 'host', 'hostname', 'username', 'password', 'protocol'], needs: [] },
  'pubsub.redis': { takes: ['redisHost', 'redisPassword', 'maxLenApprox'], needs: ['redisHost'] },
};
const common = ['publishingScopes', 'subscriptionScopes', 'allowedTopics', 'protectedTopics'];

export function componentProblems(spec: ComponentSpec): Problem[] {
  const type = componentTypes[spec.type];
  if (type === undefined)
    return [invalid('spec.type', `components of type ${JSON.stringify(spec.type)} are not known here. Known: ${Object.keys(componentTypes).join(', ')}`)];
  const problems: Problem[] = [];
  const names = new Set<string>();
  for (const [i, { name, envRef, secretKeyRef }] of (spec.metadata ?? []).entries()) {
    if (names.has(name)) problems.push(invalid(`spec.metadata[${i}].name`, `${name} is given twice`));
    names.add(name);
    if (!type.takes.includes(name) && !common.includes(name))
      problems.push(invalid(`spec.metadata[${i}].name`, `${spec.type} takes no ${JSON.stringify(name)}. It takes: ${[...type.takes, ...common].join(', ')}`));
    if (secretKeyRef !== undefined && common.includes(name))
      problems.push(
        invalid(`spec.metadata[${i}].secretKeyRef`, `${name} decides about access, which must not depend on whether a Secret exists: give its value`),
      );
    if (envRef !== undefined)
      problems.push(invalid(`spec.metadata[${i}].envRef`, 'the control plane has no environment to read from: use value or secretKeyRef'));
  }
  for (const name of type.needs) if (!names.has(name)) problems.push(invalid('spec.metadata', `${spec.type} needs ${name}`));
  return problems;
}

export function subscriptionProblems(spec: SubscriptionSpec): Problem[] {
  if (spec.route === undefined && spec.routes === undefined) return [invalid('spec', 'where do events go? route (v1alpha1) or routes (v2alpha1) is missing')];
  return (spec.routes?.rules ?? []).flatMap(({ match }, i) =>
    match === undefined || match === '' ? [invalid(`spec.routes.rules[${i}].match`, 'a rule needs a CEL expression; what meets no rule goes to default')] : [],
  );
}

export function resiliencyProblems(spec: ResiliencySpec): Problem[] {
  const problems: Problem[] = [];
  const { timeouts = {}, retries = {} } = spec.policies ?? {};
  for (const [name, text] of Object.entries(timeouts))
    if (parseDurationMs(text) === undefined) problems.push(invalid(`spec.policies.timeouts.${name}`, `${JSON.stringify(text)} is no duration`));
  for (const [name, { duration, maxInterval }] of Object.entries(retries))
    for (const text of [duration, maxInterval])
      if (text !== undefined && parseDurationMs(text) === undefined)
        problems.push(invalid(`spec.policies.retries.${name}`, `${JSON.stringify(text)} is no duration`));
  for (const [name, { inbound }] of Object.entries(spec.targets?.components ?? {})) {
    if (inbound?.retry !== undefined && !Object.hasOwn(retries, inbound.retry))
      problems.push(invalid(`spec.targets.components.${name}.inbound.retry`, `there is no policy ${JSON.stringify(inbound.retry)}`));
    if (inbound?.timeout !== undefined && !Object.hasOwn(timeouts, inbound.timeout) && parseDurationMs(inbound.timeout) === undefined)
      problems.push(invalid(`spec.targets.components.${name}.inbound.timeout`, `there is no policy ${JSON.stringify(inbound.timeout)}, and it is no duration`));
  }
  return problems;
}

export function messageRouteProblems(spec: MessageRouteSpec): Problem[] {
  const problems: Problem[] = [];
  let share = 0;
  for (const [i, { weight, headers }] of (spec.routes ?? []).entries()) {
    if (weight === undefined && headers === undefined) problems.push(invalid(`spec.routes[${i}]`, 'which messages? weight or headers'));
    share += weight ?? 0;
  }
  if (share > 100) problems.push(invalid('spec.routes', `the weights add up to ${share}: more than there is`));
  return problems;
}
