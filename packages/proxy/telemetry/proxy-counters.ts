/** What is counted of the proxy as a whole, by name; `_total` counts, the rest are levels. */
export class ProxyCounters {
  readonly values = {
    downstream_connections_total: 0,
    downstream_connections_active: 0,
    downstream_http2_connections_total: 0,
    downstream_requests_total: 0,
    downstream_requests_active: 0,
    downstream_connections_overload_rejected_total: 0,
    downstream_requests_overload_rejected_total: 0,
    streams_overload_reset_total: 0,
    tcp_sessions_total: 0,
    tcp_sessions_active: 0,
    udp_sessions_total: 0,
    udp_sessions_active: 0,
    udp_datagrams_dropped_total: 0,
    tunnels_total: 0,
    dns_queries_total: 0,
    dns_table_answers_total: 0,
    dns_forwarded_total: 0,
    dns_cache_hits_total: 0,
    dns_failures_total: 0,
    dns_dropped_total: 0,
    listener_filter_timeouts_total: 0,
    original_destination_is_self_total: 0,
    proxy_protocol_refused_total: 0,
    tls_handshake_failures_total: 0,
    tls_handshakes_total: 0,
    tls_sessions_resumed_total: 0,
    plain_text_refused_total: 0,
    identity_refused_total: 0,
    no_filter_chain_match_total: 0,
    timeouts_total: 0,
    access_log_lines_dropped_total: 0,
    config_updates_total: 0,
    config_rejected_total: 0,
    control_plane_connected: 0,
    control_plane_connection_attempts_total: 0,
    certificates_issued_total: 0,
    kept_configuration_in_use: 0,
    kept_configuration_writes_total: 0,
    kept_configuration_write_failures_total: 0,
  };
  readonly violations: Map<string, number> = new Map();

  /** Series with labels, by their whole name: `policy_rejections_total{policy="api_key",reason="missing"}`. */
  readonly series: Map<string, number> = new Map();

  /** A request that a policy has turned away. Reasons are words of ours, never of a peer's. */
  countRejection(policy: string, reason: string): void {
    this.count(`policy_rejections_total{policy="${policy}",reason="${reason}"}`);
  }

  /** `series` is a name with its labels; callers see to it that there are few. */
  count(series: string, by = 1): void {
    this.series.set(series, (this.series.get(series) ?? 0) + by);
  }

  countViolation(reason: string): void {
    this.violations.set(reason, (this.violations.get(reason) ?? 0) + 1);
  }
}
