/** The log as people read it on a terminal, and as programs read it elsewhere. */
import { describe, expect, it } from 'vitest'
import { readableLine } from '../../agent/log.ts'

const line = (fields: object) =>
  readableLine(JSON.stringify({ level: 'info', time: '2026-01-02T15:04:05.678Z', ...fields }))

describe('a line for people', () => {
  it('has time, level, event and fields', () => {
    expect(line({ msg: 'peer.connected', peerId: '12D3', rttMs: 3, tags: ['a'] })).toBe(
      '15:04:05 info  peer.connected peerId=12D3 rttMs=3 tags=["a"]\n',
    )
  })

  it('shows where an error came from, below', () => {
    expect(
      line({ msg: 'api.failed', err: { type: 'Error', message: 'no', stack: 'Error: no\n    at f (x.ts:1:2)' } }),
    ).toBe('15:04:05 info  api.failed\n               Error: no\n                at f (x.ts:1:2)\n')
  })

  it('has nothing in it that acts on the terminal, whatever a peer put into a field', () => {
    expect(line({ msg: 'peer.refused', reason: '\x1b[2Jgone\r\n15:04:06 error forged' })).toBe(
      '15:04:05 info  peer.refused reason=[2Jgone 15:04:06 error forged\n',
    )
  })
})
