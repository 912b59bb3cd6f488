import { readFileSync, statSync } from 'node:fs';
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

const lookAgainMs = 5_000;

/** The servers of a resolv.conf that may change while it is used: it is looked at again every five seconds, by those who ask. */
export function followedServers(path = '/etc/resolv.conf'): () => readonly string[] {
  let { servers } = readResolverConfig(path);
  let changedAt = changeTimeOf(path);
  let lookedAt = Date.now();
  return () => {
    if (Date.now() - lookedAt < lookAgainMs) return servers;
    lookedAt = Date.now();
    const now = changeTimeOf(path);
    if (now === changedAt) return servers;
    changedAt = now;
    ({ servers } = readResolverConfig(path));
    return servers;
  };
}

function changeTimeOf(path: string): number {
  return statSync(path, { throwIfNoEntry: false })?.mtimeMs ?? 0;
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
