/**
 * Every metric of `/metrics`, one table: its type, what it tells, its unit and its labels. The reference and the alert rules are held
 * against it, and nothing is told that is not in it.
 *
 * Names follow Prometheus (https://prometheus.io/docs/practices/naming/): base units, the unit last, `_total` on what only grows. Those that
 * begin with `process_`, `nodejs_` and `libp2p_` mean what they mean elsewhere, so that dashboards made for them fit.
 *
 * No label has the id or the name of a peer: it would make a series for each, and they would be kept by whoever collects them. Labels
 * have words of the code, or names of networks that this node is in.
 */

type MetricType = 'counter' | 'gauge' | 'histogram'
type MetricUnit = 'bytes' | 'seconds'

export type MetricRow = {
  type: MetricType
  help: string
  unit?: MetricUnit
  labels?: readonly string[]
}

/** In the order in which they are told. */
export const METRICS = {
  undernet_build_info: {
    type: 'gauge',
    help: 'Always 1: the version of the agent, and of Node that runs it.',
    labels: ['version', 'node_version'],
  },
  undernet_warnings: {
    type: 'gauge',
    help: 'Warnings that agent status shows now, by their code.',
    labels: ['code'],
  },
  undernet_log_entries_total: {
    type: 'counter',
    help: 'Entries that were logged, by event; of levels below log_level none are counted.',
    labels: ['level', 'event'],
  },
  undernet_clock_offset_seconds: {
    type: 'gauge',
    help: 'The clocks of peers minus this one, the median. Absent until peers were asked.',
    unit: 'seconds',
  },

  undernet_peers: {
    type: 'gauge',
    help: 'Connected peers, by whether a relay carries the connection and who dialled.',
    labels: ['path', 'direction'],
  },
  undernet_peer_round_trip_median_seconds: {
    type: 'gauge',
    help: 'Round trip to connected peers, the median. Absent until one was measured.',
    unit: 'seconds',
  },
  undernet_peer_round_trip_max_seconds: {
    type: 'gauge',
    help: 'Round trip to the connected peer that is farthest. Absent until one was measured.',
    unit: 'seconds',
  },
  undernet_bootstraps: {
    type: 'gauge',
    help: 'Peers of the configuration to stay connected to, by how it goes.',
    labels: ['state'],
  },
  undernet_relayed_connections: {
    type: 'gauge',
    help: 'Connections that this node carries for other members.',
  },

  undernet_networks: {
    type: 'gauge',
    help: 'Networks that this node is in.',
    labels: ['kind'],
  },
  undernet_networks_failed: {
    type: 'gauge',
    help: 'Networks that this node is in and that do not run.',
  },
  undernet_network_nodes: {
    type: 'gauge',
    help: 'Nodes whose presence is known, this one included.',
    labels: ['network'],
  },
  undernet_network_members: {
    type: 'gauge',
    help: 'Members that are known, whether they are here or not.',
    labels: ['network'],
  },
  undernet_certificate_expiry_timestamp_seconds: {
    type: 'gauge',
    help: "When this node's certificate in a network ends, in seconds since 1970.",
    unit: 'seconds',
    labels: ['network'],
  },

  undernet_records: {
    type: 'gauge',
    help: 'Records that are kept.',
    labels: ['network'],
  },
  undernet_records_bytes: {
    type: 'gauge',
    help: 'Size of the records that are kept.',
    unit: 'bytes',
    labels: ['network'],
  },
  undernet_record_publishers: {
    type: 'gauge',
    help: 'Nodes whose records are kept.',
    labels: ['network'],
  },
  undernet_records_received_total: {
    type: 'counter',
    help: 'Records that came from peers, by what became of them.',
    labels: ['network', 'outcome'],
  },
  undernet_artifacts: {
    type: 'gauge',
    help: 'Artifacts that are known, by whether this node published them.',
    labels: ['publisher'],
  },

  undernet_content_blobs: {
    type: 'gauge',
    help: 'Blobs in the blob directory.',
  },
  undernet_content_bytes: {
    type: 'gauge',
    help: 'Size of the blobs in the blob directory.',
    unit: 'bytes',
  },
  undernet_content_kept_bytes: {
    type: 'gauge',
    help: 'Of these, what is published or pinned, so that no room is made of it.',
    unit: 'bytes',
  },
  undernet_content_quota_bytes: {
    type: 'gauge',
    help: 'What the blob directory may take, by the configuration.',
    unit: 'bytes',
  },
  undernet_content_fetched_bytes_total: {
    type: 'counter',
    help: 'Content that was fetched: from peers over streams or lanes, from caches and registries upstream.',
    unit: 'bytes',
    labels: ['from'],
  },
  undernet_content_served_bytes_total: {
    type: 'counter',
    help: 'Content that peers were given, over streams or lanes.',
    unit: 'bytes',
    labels: ['over'],
  },
  undernet_content_unkept_total: {
    type: 'counter',
    help: 'Blobs that were handed to Nix and not kept, since there was no room.',
  },
  undernet_lanes: {
    type: 'gauge',
    help: 'Bulk lanes on which peers are given content now.',
  },
  undernet_upstreams: {
    type: 'gauge',
    help: 'Caches and registries upstream, by whether they are asked or left alone after failures.',
    labels: ['kind', 'state'],
  },

  undernet_nix_paths_shared: {
    type: 'gauge',
    help: 'Store paths that this node gives out.',
  },
  undernet_nix_narinfo_requests_total: {
    type: 'counter',
    help: 'Store paths that the local Nix asked for: hit when somebody had them.',
    labels: ['result'],
  },
  undernet_oci_uploads: {
    type: 'gauge',
    help: 'Pushes of blobs of images that are under way.',
  },
  undernet_oci_upload_bytes: {
    type: 'gauge',
    help: 'Bytes that came of them.',
    unit: 'bytes',
  },

  undernet_services: {
    type: 'gauge',
    help: 'Services of networks, by whether this node offers them.',
    labels: ['network', 'offered'],
  },
  undernet_service_instances: {
    type: 'gauge',
    help: 'Instances of services, by how they are.',
    labels: ['network', 'state'],
  },
  undernet_tunnels: {
    type: 'gauge',
    help: 'Tunnels that are open: out for those that this node dialled.',
    labels: ['direction', 'carrier'],
  },
  undernet_tunnels_opened_total: {
    type: 'counter',
    help: 'Tunnels that were opened.',
    labels: ['direction'],
  },
  undernet_tunnel_sent_bytes_total: {
    type: 'counter',
    help: 'Bytes that went to the other member through tunnels.',
    unit: 'bytes',
    labels: ['direction'],
  },
  undernet_tunnel_received_bytes_total: {
    type: 'counter',
    help: 'Bytes that came from the other member through tunnels.',
    unit: 'bytes',
    labels: ['direction'],
  },

  undernet_http_requests_total: {
    type: 'counter',
    help: 'Requests on the loopback HTTP server, by front-end and class of the answer.',
    labels: ['front', 'code'],
  },
  undernet_http_request_duration_seconds: {
    type: 'histogram',
    help: 'From the head of a request to the end of its answer.',
    unit: 'seconds',
    labels: ['front'],
  },

  undernet_state_disk_free_bytes: {
    type: 'gauge',
    help: 'Free on the disk of the state directory.',
    unit: 'bytes',
  },
  undernet_state_disk_size_bytes: {
    type: 'gauge',
    help: 'Size of the disk of the state directory.',
    unit: 'bytes',
  },
  undernet_state_database_bytes: {
    type: 'gauge',
    help: 'Size of the databases in the state directory, with their logs.',
    unit: 'bytes',
  },

  libp2p_connections: {
    type: 'gauge',
    help: 'Connections of the libp2p host; pending ones have not proven who they are yet.',
    labels: ['state'],
  },
  libp2p_protocol_streams: {
    type: 'gauge',
    help: 'Open streams, by who opened them and their protocol.',
    labels: ['direction', 'protocol'],
  },
  libp2p_data_transfer_bytes_total: {
    type: 'counter',
    help: 'Bytes on connections with peers, encrypted, without those of lanes.',
    unit: 'bytes',
    labels: ['direction'],
  },
  libp2p_upgrades_total: {
    type: 'counter',
    help: 'Connections that were begun.',
    labels: ['direction'],
  },
  libp2p_upgrade_errors_total: {
    type: 'counter',
    help: 'Connections that did not come about, by why.',
    labels: ['direction', 'error'],
  },
  libp2p_dial_queue: {
    type: 'gauge',
    help: 'Dials, by whether they run or wait.',
    labels: ['state'],
  },
  libp2p_tcp_dialer_events_total: {
    type: 'counter',
    help: 'What became of TCP dials.',
    labels: ['event'],
  },
  libp2p_noise_handshakes_total: {
    type: 'counter',
    help: 'Noise handshakes, by how they ended.',
    labels: ['result'],
  },
  libp2p_noise_packets_total: {
    type: 'counter',
    help: 'Noise packets that were encrypted, decrypted, or could not be.',
    labels: ['operation'],
  },
  libp2p_kad_dht_routing_table_size: {
    type: 'gauge',
    help: 'Peers in the routing table of the DHT.',
  },
  libp2p_kad_dht_rpc_requests_total: {
    type: 'counter',
    help: 'Messages of the DHT.',
    labels: ['direction', 'type'],
  },
  libp2p_kad_dht_rpc_errors_total: {
    type: 'counter',
    help: 'Messages of the DHT that failed.',
    labels: ['direction', 'type'],
  },

  process_cpu_seconds_total: {
    type: 'counter',
    help: 'User and system time of the process.',
    unit: 'seconds',
  },
  process_resident_memory_bytes: {
    type: 'gauge',
    help: 'Resident memory of the process.',
    unit: 'bytes',
  },
  process_start_time_seconds: {
    type: 'gauge',
    help: 'When the process started, in seconds since 1970.',
    unit: 'seconds',
  },
  process_open_fds: {
    type: 'gauge',
    help: 'Open file descriptors.',
  },
  process_max_fds: {
    type: 'gauge',
    help: 'How many file descriptors may be open.',
  },
  nodejs_heap_size_used_bytes: {
    type: 'gauge',
    help: 'Of the JavaScript heap, what is in use.',
    unit: 'bytes',
  },
  nodejs_heap_size_total_bytes: {
    type: 'gauge',
    help: 'The JavaScript heap.',
    unit: 'bytes',
  },
  nodejs_external_memory_bytes: {
    type: 'gauge',
    help: 'Memory that JavaScript objects hold outside of the heap.',
    unit: 'bytes',
  },
  nodejs_eventloop_lag_seconds: {
    type: 'gauge',
    help: 'How long the event loop took to its next turn, when the metrics were asked for.',
    unit: 'seconds',
  },
  nodejs_eventloop_active_seconds_total: {
    type: 'counter',
    help: 'Time that the event loop was at work.',
    unit: 'seconds',
  },
  nodejs_eventloop_idle_seconds_total: {
    type: 'counter',
    help: 'Time that the event loop had nothing to do.',
    unit: 'seconds',
  },
} as const satisfies Record<string, MetricRow>

export type MetricName = keyof typeof METRICS

/** One value. Of a histogram also its part. */
export type Sample = {
  name: MetricName
  value: number
  labels?: Readonly<Record<string, string>>
  part?: '_bucket' | '_sum' | '_count'
}
