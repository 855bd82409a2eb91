/** What libp2p counts of itself comes out under the names of the table, and nothing else does. */
import type { MultiaddrConnection } from '@libp2p/interface'
import { describe, expect, it } from 'vitest'
import { Libp2pMetrics } from '../../../agent/metrics/libp2p.ts'

async function told(metrics: Libp2pMetrics): Promise<string[]> {
  const samples = await metrics.samples()
  return samples.map(({ name, labels = {}, value }) => `${[name, ...Object.values(labels)].join(' ')} ${value}`)
}

describe("libp2p's metrics", () => {
  it('are counted, or asked for, and told by the names of the table', async () => {
    const all = new Libp2pMetrics()
    const metrics = all.factory()
    metrics
      .registerCounterGroup('libp2p_connection_manager_dials_inbound_errors_total')
      .increment({ TimeoutError: true })
    metrics.registerCounterGroup('libp2p_connection_manager_dials_outbound_errors_total').increment({ TimeoutError: 2 })
    metrics.registerCounter('libp2p_noise_encrypted_packets_total').increment()
    metrics.registerMetric('libp2p_kad_dht_routing_table_size').update(7)
    metrics.registerMetricGroup('libp2p_protocol_streams_total', {
      calculate: async () => ({ 'inbound /undernet/pieces/1': 3 }),
    })
    metrics.registerMetricGroup('libp2p_dial_queue', { calculate: () => ({ size: 3, running: 1, queued: 2 }) })
    expect(await told(all)).toEqual([
      'libp2p_upgrade_errors_total inbound TimeoutError 1',
      'libp2p_upgrade_errors_total outbound TimeoutError 2',
      'libp2p_noise_packets_total encrypted 1',
      'libp2p_data_transfer_bytes_total received 0',
      'libp2p_data_transfer_bytes_total sent 0',
      'libp2p_kad_dht_routing_table_size 7',
      'libp2p_protocol_streams inbound /undernet/pieces/1 3',
      'libp2p_dial_queue running 1',
      'libp2p_dial_queue queued 2',
    ])
  })

  it('are left out when they are not in the table, and may be used all the same', async () => {
    const all = new Libp2pMetrics()
    const metrics = all.factory()
    const group = metrics.registerMetricGroup('libp2p_of_tomorrow')
    group.update({ a: 1 })
    group.increment({ '/ip4/10.0.0.1/tcp/1': true })
    group.timer('a')()
    metrics.registerHistogram('libp2p_of_tomorrow_too').observe(1)
    const traced = metrics.traceFunction('x', (word: string) => word)
    expect(traced('same')).toBe('same')
    expect((await told(all)).filter((line) => !line.startsWith('libp2p_data_transfer'))).toEqual([])
  })

  it('count the bytes of a connection, not again those that go through a relay, nor those that the socket did not take', async () => {
    const all = new Libp2pMetrics()
    const connection = (address: string) => ({
      remoteAddr: address,
      got: 0,
      onData(data: Uint8Array) {
        this.got += data.byteLength
      },
      sendData: (data: Uint8Array) => ({ sentBytes: data.byteLength - 1, canSendMore: false }),
    })
    const [direct, relayed] = [connection('/ip4/10.0.0.1/tcp/7477'), connection('/ip4/10.0.0.1/tcp/7477/p2p-circuit')]
    for (const one of [direct, relayed]) {
      all.factory().trackMultiaddrConnection(one as unknown as MultiaddrConnection)
      one.onData(new Uint8Array(10))
      expect(one.sendData(new Uint8Array(5))).toEqual({ sentBytes: 4, canSendMore: false })
      expect(one.got).toBe(10)
    }
    expect(await told(all)).toEqual([
      'libp2p_data_transfer_bytes_total received 10',
      'libp2p_data_transfer_bytes_total sent 4',
    ])
  })
})
