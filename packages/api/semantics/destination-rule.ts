import type { Problem } from '../resource.ts';
import type {
  ClientTlsSpec,
  DestinationRuleSpec,
  LoadBalancerSpec,
  LocalityLbSpec,
  OutlierDetectionSpec,
  TrafficPolicySpec,
} from '../types/destination-rule.ts';
import { collect, durationProblem, hostProblem, invalid, percentProblem, portProblem } from './checks.ts';

/** Rules of Istio's own validation of DestinationRule that can be decided from the object alone. */
export function destinationRuleProblems(spec: DestinationRuleSpec): Problem[] {
  if (!spec.host) return [{ code: 'missing-field', path: 'spec.host', message: 'required field "host" is missing in spec' }];
  const problems = collect(hostProblem(spec.host, 'spec.host'));
  policyProblems(spec.trafficPolicy, 'spec.trafficPolicy', problems);
  const seen = new Set<string>();
  spec.subsets?.forEach((subset, i) => {
    const path = `spec.subsets[${i}]`;
    if (!subset.name) problems.push({ code: 'missing-field', path: `${path}.name`, message: 'a subset needs a name' });
    else if (seen.has(subset.name)) problems.push(invalid(`${path}.name`, `subset "${subset.name}" is defined twice`));
    seen.add(subset.name);
    policyProblems(subset.trafficPolicy, `${path}.trafficPolicy`, problems);
  });
  return problems;
}

function policyProblems(policy: TrafficPolicySpec | undefined, path: string, problems: Problem[]): void {
  if (!policy) return;
  if (policy.loadBalancer?.simple && policy.loadBalancer.consistentHash)
    problems.push(invalid(`${path}.loadBalancer`, 'only one of simple and consistentHash may be set'));
  if (policy.loadBalancer) balancingProblems(policy.loadBalancer, `${path}.loadBalancer`, problems);
  if (policy.outlierDetection) outlierProblems(policy.outlierDetection, `${path}.outlierDetection`, problems);
  const { tunnel } = policy;
  if (tunnel) {
    if (tunnel.protocol !== undefined && tunnel.protocol !== 'CONNECT')
      problems.push(invalid(`${path}.tunnel.protocol`, `proxies are asked for tunnels by CONNECT, not by ${tunnel.protocol}`));
    problems.push(
      ...collect(hostProblem(tunnel.targetHost ?? '', `${path}.tunnel.targetHost`, false), portProblem(tunnel.targetPort, `${path}.tunnel.targetPort`)),
    );
  }
  if (policy.retryBudget) problems.push(...collect(percentProblem(policy.retryBudget.percent, `${path}.retryBudget.percent`)));
  problems.push(...collect(durationProblem(policy.connectionPool?.tcp?.connectTimeout, `${path}.connectionPool.tcp.connectTimeout`)));
  if (policy.tls?.mode === 'MUTUAL' && !policy.tls.credentialName && !(policy.tls.clientCertificate && policy.tls.privateKey)) {
    problems.push(
      invalid(`${path}.tls`, "mode MUTUAL needs clientCertificate and privateKey (or credentialName); for the mesh's own certificates use ISTIO_MUTUAL"),
    );
  }
  if (policy.tls) problems.push(...clientTlsProblems(policy.tls, `${path}.tls`));
  policy.portLevelSettings?.forEach((settings, i) => {
    const portPath = `${path}.portLevelSettings[${i}]`;
    problems.push(...collect(portProblem(settings.port?.number, `${portPath}.port.number`)));
    policyProblems(settings, portPath, problems);
  });
}

const meshOwned = ['clientCertificate', 'privateKey', 'caCertificates', 'credentialName', 'caCertCredentialName', 'caCrl', 'insecureSkipVerify'] as const;
const verifying = ['caCertificates', 'caCertCredentialName', 'caCrl', 'subjectAltNames'] as const;

/** Fields that the mode or another field leaves without effect. Their writer would rely on a verification that does not take place. */
function clientTlsProblems(tls: ClientTlsSpec, path: string): Problem[] {
  const isSet = (field: keyof ClientTlsSpec) => {
    const value = tls[field];
    return Array.isArray(value) ? value.length > 0 : Boolean(value);
  };
  const refuse = (fields: readonly (keyof ClientTlsSpec)[], why: string) => fields.filter(isSet).map((field) => invalid(`${path}.${field}`, why));
  if (tls.mode === undefined)
    return refuse([...meshOwned, 'subjectAltNames', 'sni'], 'has no effect without a mode: set mode SIMPLE, or MUTUAL where a client certificate is presented');
  if (tls.mode === 'ISTIO_MUTUAL')
    return refuse(meshOwned, 'mode ISTIO_MUTUAL uses the certificates and roots of the mesh: leave it out, or use mode MUTUAL or SIMPLE');
  return tls.mode !== 'DISABLE' && tls.insecureSkipVerify
    ? refuse(verifying, 'would not be verified, since insecureSkipVerify is true: leave one of them out')
    : [];
}

const maxRingSize = 8 * 1024 * 1024;

function balancingProblems(balancer: LoadBalancerSpec, path: string, problems: Problem[]): void {
  const { consistentHash: hash, localityLbSetting: locality, warmup, warmupDurationSecs } = balancer;
  problems.push(...collect(durationProblem(warmup?.duration, `${path}.warmup.duration`), durationProblem(warmupDurationSecs, `${path}.warmupDurationSecs`)));
  if (warmup && warmup.duration === undefined)
    problems.push({ code: 'missing-field', path: `${path}.warmup.duration`, message: 'a warm-up needs its duration, for example 30s' });
  problems.push(...collect(percentProblem(warmup?.minimumPercent, `${path}.warmup.minimumPercent`)));
  if (warmup?.aggression !== undefined && warmup.aggression < 1)
    problems.push(invalid(`${path}.warmup.aggression`, `${warmup.aggression} is too little: at least 1, which is linear`));
  if (hash) {
    const given = (['httpHeaderName', 'httpCookie', 'useSourceIp', 'httpQueryParameterName'] as const).filter((field) => hash[field]);
    if (given.length !== 1)
      problems.push(
        invalid(
          `${path}.consistentHash`,
          `one of httpHeaderName, httpCookie, useSourceIp and httpQueryParameterName says what is hashed${given.length > 1 ? `, not ${given.join(' and ')}` : ''}`,
        ),
      );
    if (hash.httpCookie && !hash.httpCookie.name)
      problems.push({ code: 'missing-field', path: `${path}.consistentHash.httpCookie.name`, message: 'a cookie needs a name' });
    problems.push(...collect(durationProblem(hash.httpCookie?.ttl, `${path}.consistentHash.httpCookie.ttl`, 0)));
    if (hash.ringHash && hash.maglev) problems.push(invalid(`${path}.consistentHash`, 'only one of ringHash and maglev may be set'));
    const size = hash.ringHash?.minimumRingSize ?? hash.minimumRingSize;
    if (size !== undefined && (size < 0 || size > maxRingSize))
      problems.push(invalid(`${path}.consistentHash.ringHash.minimumRingSize`, `${size} is no size of a ring: at most ${maxRingSize}`));
    const table = hash.maglev?.tableSize;
    if (table !== undefined && table !== 0 && !(table <= 5_000_011 && isPrime(Number(table))))
      problems.push(invalid(`${path}.consistentHash.maglev.tableSize`, `${table} is no size of a Maglev table: a prime up to 5000011, such as 65537`));
  }
  if (locality) problems.push(...localityProblems(locality, `${path}.localityLbSetting`));
}

function isPrime(value: number): boolean {
  for (let i = 2; i * i <= value; i++) if (value % i === 0) return false;
  return value > 1;
}

/** Localities of the mesh's own settings follow the same rules. */
export function localityProblems(locality: LocalityLbSpec, path: string): Problem[] {
  const problems: Problem[] = [];
  const { distribute = [], failover = [], failoverPriority = [] } = locality;
  if (distribute.length > 0 && (failover.length > 0 || failoverPriority.length > 0))
    problems.push(invalid(path, 'only one of distribute and failover (or failoverPriority) may be set'));
  const seen = new Set<string>();
  distribute.forEach((one, i) => {
    const place = `${path}.distribute[${i}]`;
    if (!one.from)
      problems.push({ code: 'missing-field', path: `${place}.from`, message: 'where the traffic comes from is required, for example region1/zone1/*' });
    else if (seen.has(one.from)) problems.push(invalid(`${place}.from`, `traffic from ${one.from} is distributed twice`));
    seen.add(one.from ?? '');
    const weights = Object.values(one.to ?? {});
    const sum = weights.reduce((total, weight) => total + weight, 0);
    if (sum !== 100 || weights.some((weight) => weight <= 0 || !Number.isInteger(weight)))
      problems.push(invalid(`${place}.to`, `the weights must be whole numbers above 0 that add up to 100, not ${sum}`));
  });
  failover.forEach((one, i) => {
    for (const field of ['from', 'to'] as const)
      if (!one[field]) problems.push({ code: 'missing-field', path: `${path}.failover[${i}].${field}`, message: 'from and to name regions' });
      else if (/[/*]/.test(one[field]!))
        problems.push(invalid(`${path}.failover[${i}].${field}`, `${one[field]} is more than a region: failover goes from region to region`));
    if (one.from && one.from === one.to) problems.push(invalid(`${path}.failover[${i}]`, `failover from ${one.from} to itself`));
  });
  return problems;
}

function outlierProblems(detection: OutlierDetectionSpec, path: string, problems: Problem[]): void {
  problems.push(
    ...collect(
      durationProblem(detection.interval, `${path}.interval`),
      durationProblem(detection.baseEjectionTime, `${path}.baseEjectionTime`),
      percentProblem(detection.maxEjectionPercent, `${path}.maxEjectionPercent`),
      percentProblem(detection.minHealthPercent, `${path}.minHealthPercent`),
    ),
  );
  if (detection.consecutiveLocalOriginFailures && !detection.splitExternalLocalOriginErrors)
    problems.push(invalid(`${path}.consecutiveLocalOriginFailures`, 'needs splitExternalLocalOriginErrors: true, without which all failures count alike'));
}
