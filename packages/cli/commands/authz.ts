import { MizzenError, parseSpiffeId } from '@mizzen/common';
import { type AskedRequest, type ExplainedPort, explainAuthorization } from '@mizzen/proxy';
import { ApiClient } from '../api-client.ts';
import { controlAccess, homeOf } from '../home.ts';
import { nameValues } from '../name-value.ts';
import { formatTable, outputFormat, paint, print, printData } from '../output.ts';
import { askProxy } from '../proxy-admin.ts';
import { findProxy, type StatusOptions } from './status.ts';

export interface CheckOptions extends StatusOptions {
  readonly from?: string;
  readonly method?: string;
  readonly path?: string;
  readonly host?: string;
  readonly header: readonly string[];
  readonly claim: readonly string[];
  readonly sourceIp?: string;
  readonly port?: string;
}

/** `mizzen authz check PROXY`: the rules that a proxy has in effect, asked of the proxy itself; and what they decide about a request. */
export async function check(name: string, options: CheckOptions): Promise<void> {
  const home = homeOf(options.home);
  const api = new ApiClient(controlAccess(home));
  try {
    const proxy = await findProxy(api, name);
    const dump = (await askProxy(proxy, '/config_dump', home)) as { configs: { listeners?: { resources: readonly never[] } } };
    const asked = askedRequest(options, proxy.name);
    const all = explainAuthorization(dump.configs.listeners?.resources ?? [], asked);
    const ports = options.port === undefined ? all : all.filter(({ port }) => port === Number(options.port));
    const format = outputFormat(options.output);
    if (format !== 'table') return printData(ports, format);
    if (ports.length === 0)
      return print(
        `no AuthorizationPolicy is in effect at ${proxy.name}${options.port === undefined ? '' : `, port ${options.port}`}: everybody who reaches it may call it.`,
      );
    print(
      formatTable(
        ['PORT', 'PROTOCOL', 'ACTION', 'POLICY', 'RULES', ...(asked ? ['MET'] : [])],
        ports.flatMap((port) => rows(port, asked !== undefined)),
      ),
    );
    if (asked) for (const port of ports) print(verdictText(port, asked));
  } finally {
    api.close();
  }
}

function rows({ port, isHttp, rules }: ExplainedPort, isAsked: boolean): string[][] {
  return rules.flatMap(({ action, isDryRun, policies, met }) => {
    const counts = new Map<string, number>();
    for (const policy of policies) counts.set(policyOf(policy), (counts.get(policyOf(policy)) ?? 0) + 1);
    const shown = action === 'LOG' ? 'AUDIT' : action;
    return [...counts].map(([policy, count]) => [
      String(port),
      isHttp ? 'HTTP' : 'TCP',
      isDryRun ? `${shown} (dry run)` : shown,
      policy,
      String(count),
      ...(isAsked ? [met !== undefined && policyOf(met) === policy ? `rule ${/rule\[(\d+)\]/.exec(met)?.[1]}` : '-'] : []),
    ]);
  });
}

/** `ns[default]-policy[shop]-rule[0]` -> `default/shop`. */
function policyOf(name: string): string {
  const [, namespace, policy] = /ns\[(.+)\]-policy\[(.+)\]-rule/.exec(name) ?? [];
  return policy === undefined ? name : `${namespace}/${policy}`;
}

function verdictText({ port, isHttp, verdict }: ExplainedPort, { method, path, principal }: AskedRequest): string {
  const what = isHttp ? `${method} ${path}` : 'a connection';
  const who = principal ?? 'somebody without an identity';
  const by = verdict!.by.startsWith('ns[') ? `by ${policyOf(verdict!.by)}, rule ${/rule\[(\d+)\]/.exec(verdict!.by)?.[1]}` : `(${verdict!.by})`;
  return `port ${port}: ${what} from ${who} is ${verdict!.isAllowed ? paint('allowed', 'green') : paint('denied', 'red')} ${by}`;
}

/** undefined: nothing is asked about. */
function askedRequest({ from, method, path, host, header, claim, sourceIp }: CheckOptions, proxyName: string): AskedRequest | undefined {
  if ([from, method, path, host, sourceIp].every((one) => one === undefined) && header.length === 0 && claim.length === 0) return undefined;
  return {
    principal: from === undefined ? undefined : principalOf(from),
    sourceIp: sourceIp ?? '127.0.0.1',
    method: method ?? 'GET',
    path: path ?? '/',
    host: host ?? proxyName,
    headers: nameValues(header, '--header'),
    claims: claim.length === 0 ? undefined : nameValues(claim, '--claim'),
  };
}

function principalOf(from: string): string {
  if (parseSpiffeId(from) !== undefined) return from;
  const parts = from.split('/');
  if (parts.length === 2) return `spiffe://cluster.local/ns/${parts[0]}/sa/${parts[1]}`;
  throw new MizzenError('bad-option', `--from ${from}: who is that? NAMESPACE/SERVICEACCOUNT, or a whole identity as spiffe://cluster.local/ns/default/sa/web`);
}
