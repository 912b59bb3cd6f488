import { readFileSync } from 'node:fs';
import { isIP } from 'node:net';

/** What resolv.conf(5) says: whom to ask, and the domains that short names are tried in. */
export interface ResolverConfig {
  readonly servers: readonly string[];
  readonly searchDomains: readonly string[];
}

const maxServers = 3;

export function readResolverConfig(path = '/etc/resolv.conf'): ResolverConfig {
  let text = '';
  try {
    text = readFileSync(path, 'utf8');
  } catch {
    // No file means no servers: names outside the mesh cannot be resolved, as for everybody on this machine.
  }
  return parseResolverConfig(text);
}

export function parseResolverConfig(text: string): ResolverConfig {
  const servers: string[] = [];
  let searchDomains: string[] = [];
  for (const line of text.split('\n')) {
    const [word, ...values] = line
      .replace(/[#;].*$/, '')
      .trim()
      .split(/\s+/);
    const [first] = values;
    if (word === 'nameserver' && first !== undefined && isIP(first) !== 0 && servers.length < maxServers) servers.push(first);
    else if (word === 'search' || word === 'domain') searchDomains = values.map((domain) => domain.replace(/\.$/, '').toLowerCase()).filter(Boolean);
  }
  return { servers, searchDomains };
}
