import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import type { LabHost, LabNetwork } from '../lab/lab-state.ts';
import { partitionRules } from '../lab/partitions.ts';
import { captureFromAnnotations, defaultCapture } from './capture-settings.ts';
import { iptablesRemoval, iptablesRules } from './iptables-rules.ts';
import { nftablesRules } from './nftables-rules.ts';

const annotation = (name: string) => `traffic.sidecar.istio.io/${name}`;

describe('settings of capture', () => {
  it('come from Istio’s annotations, with Istio’s defaults', () => {
    const settings = captureFromAnnotations({
      [annotation('excludeInboundPorts')]: '9090, 9091',
      [annotation('includeOutboundIPRanges')]: '10.0.0.0/8,fd00::1',
      [annotation('excludeOutboundPorts')]: '3306',
      [annotation('includeInboundPorts')]: '',
      'other.example/annotation': 'not ours',
    });
    assert.deepEqual(settings.excludeInboundPorts, [15_008, 15_020, 15_021, 15_090, 9090, 9091]);
    assert.deepEqual(settings.includeOutboundRanges, ['10.0.0.0/8', 'fd00::1/128']);
    assert.deepEqual(settings.includeInboundPorts, []);
    assert.deepEqual([settings.outboundPort, settings.inboundPort, settings.dnsPort], [15_001, 15_006, 15_053]);
    assert.deepEqual(captureFromAnnotations({}), defaultCapture);
  });

  it('that cannot be read are refused with the annotation and the value', () => {
    for (const [name, value, problem] of [
      ['excludeOutboundPorts', '80;443', /excludeOutboundPorts: "80;443" is no port/],
      ['includeInboundPorts', '0', /"0" is no port/],
      ['includeOutboundIPRanges', '10.0.0.0/33', /is no address range/],
      ['excludeOutboundIPRanges', '10.0.0.0/8 } drop', /is no address range/],
      ['excludeInterfaces', 'eth0" drop', /is no name of a network interface/],
      ['kubevirtInterfaces', 'net1', /is not known/],
    ] as const)
      assert.throws(() => captureFromAnnotations({ [annotation(name)]: value }), problem);
  });
});

describe('rules of capture', () => {
  it('replace a table in one transaction', () => {
    const [made, removed] = nftablesRules(defaultCapture).split('\n');
    assert.deepEqual([made, removed], ['table inet mizzen {}', 'delete table inet mizzen']);
  });

  it('for iptables make a jump once, and take away what they made', () => {
    const first = iptablesRules(defaultCapture, 4, '');
    assert.match(first, /-A OUTPUT -j MIZZEN_OUT\n/);
    const existing = '*nat\n:MIZZEN_IN - [0:0]\n:MIZZEN_WL - [0:0]\n:MIZZEN_OUT - [0:0]\n-A PREROUTING -j MIZZEN_IN\n-A OUTPUT -j MIZZEN_OUT\nCOMMIT\n';
    assert.doesNotMatch(iptablesRules(defaultCapture, 4, existing), /-A (?:OUTPUT|PREROUTING) -j/);
    assert.match(
      iptablesRules({ ...defaultCapture, only: { kind: 'group', gid: 7 } }, 4, existing),
      /-D OUTPUT -j MIZZEN_OUT\n-A OUTPUT -m owner --gid-owner 7 -j MIZZEN_OUT/,
    );
    assert.equal(iptablesRemoval('mizzen', '*nat\nCOMMIT\n'), '');
    assert.match(iptablesRemoval('mizzen', existing), /-D PREROUTING -j MIZZEN_IN\n-D OUTPUT -j MIZZEN_OUT\n-F MIZZEN_IN/);
  });
});

describe('rules for one application', () => {
  const cgroup = { folder: '/sys/fs/cgroup/unified/mizzen-run-7', path: '/mizzen-run-7', level: 1 };

  it('recognize its sockets by their cgroup, and capture nothing that has no socket', () => {
    const rules = nftablesRules({ ...defaultCapture, inboundPort: undefined, proxyUids: [], proxyGids: [], only: { kind: 'cgroup', cgroup } });
    assert.match(rules, /chain output \{\n.*\n {4}socket cgroupv2 level 1 "unified\/mizzen-run-7" counter jump of_application\n {2}\}/);
    assert.doesNotMatch(rules, /!=.*return/);
    assert.match(iptablesRules({ ...defaultCapture, only: { kind: 'cgroup', cgroup } }, 4, ''), /-A OUTPUT -m cgroup --path \/mizzen-run-7 -j MIZZEN_OUT/);
  });

  it('recognize its sockets by its group where cgroups cannot be matched', () => {
    assert.match(nftablesRules({ ...defaultCapture, only: { kind: 'group', gid: 7 } }), /meta skgid 7 counter jump of_application/);
  });
});

describe('partitions of a lab', () => {
  const network = { gatewayAddress: '10.200.0.1', xdsPort: 15_012 } as LabNetwork;
  const host = (name: string, number: number, kind: LabHost['kind'] = 'inside'): LabHost => ({
    name: `${name}-0`,
    workload: name,
    namespace: `mz-${name}`,
    number,
    owner: 1,
    address: kind === 'inside' ? `10.200.0.${number}` : network.gatewayAddress,
    addressIpv6: kind === 'inside' ? `fd00::${number}` : undefined,
    kind,
  });
  const hosts = [host('a', 2), host('b', 3), host('edge', 1, 'outside')];

  it('drop what comes from and goes to the other side, by both addresses', () => {
    const rules = partitionRules(hosts[0]!, [['b', 'a']], hosts, network);
    for (const rule of ['ip saddr 10.200.0.3 drop', 'ip daddr 10.200.0.3 drop', 'ip6 saddr fd00::3 drop', 'ip6 daddr fd00::3 drop'])
      assert.ok(rules.includes(rule), rule);
    assert.doesNotMatch(partitionRules(hosts[0]!, [['b', 'edge']], hosts, network), /drop/);
  });

  it('tell those who live on the machine itself from the control plane', () => {
    assert.match(partitionRules(hosts[0]!, [['a', 'edge']], hosts, network), /ip saddr 10\.200\.0\.1 tcp sport != 15012 drop/);
    assert.match(partitionRules(hosts[0]!, [['control', 'a-0']], hosts, network), /ip daddr 10\.200\.0\.1 tcp dport 15012 drop/);
  });
});
