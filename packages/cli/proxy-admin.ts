import { MizzenError } from '@mizzen/common';
import type { ProxyStatus } from '@mizzen/control';
import { hostNameOf, readHosts } from './lab/lab-state.ts';
import { inNamespace } from './lab/network-namespace.ts';

const fetchScript = 'fetch(process.argv[1]).then((response) => response.text()).then((text) => process.stdout.write(text))';

/** Asks a proxy's own admin server, which listens on its loopback; throws MizzenError when it does not answer. */
export async function askProxy(proxy: ProxyStatus, path: string, home: string): Promise<unknown> {
  if (!proxy.admin) throw new MizzenError('no-admin', `the proxy ${proxy.name} has no admin server`);
  const url = `http://${proxy.admin}${path}`;
  // The loopback of a host in a lab is another one than ours.
  const host = readHosts(home).find((candidate) => candidate.name === hostNameOf(proxy.name, proxy.namespace) && candidate.kind === 'inside');
  if (host !== undefined) return JSON.parse(await inNamespace(host.namespace, [process.execPath, '-e', fetchScript, url])) as unknown;
  const response = await fetch(url).catch(() => undefined);
  if (!response?.ok)
    throw new MizzenError(
      'proxy-unreachable',
      `the admin server of ${proxy.name} does not answer. It listens on loopback: run this command on the proxy's machine.`,
      proxy.admin,
    );
  return response.json();
}
