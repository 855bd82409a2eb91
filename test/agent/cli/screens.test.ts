/** What people see: the screens, on terminals wide and narrow and in pipes, with what hostile peers write in them. */
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { doctorScreen } from '../../../agent/cli/doctor.ts'
import { showDuration, showMs, showSize } from '../../../agent/cli/measures.ts'
import { Progress } from '../../../agent/cli/progress.ts'
import { statusScreen } from '../../../agent/cli/status.ts'
import { fields, shorten, table, textWidth } from '../../../agent/cli/table.ts'
import { printable, printableJson } from '../../../agent/printable.ts'
import { peer, status } from '../api/fake-agent.ts'
import { Captured, plain } from './capture.ts'

const pipe = { columns: undefined, style: (_style: unknown, text: string) => text }
const HOSTILE = 'a\x1b[2J\x1b]0;pwned\x07\r\nb\u202Egpj.exe\u200B'

describe('status screen', () => {
  it('of a node that is well', () => {
    expect(statusScreen(status, pipe).join('\n')).toBe(
      `
apple  ● well

Peer id    12D3KooWEZXjE41uU4EL2gpkAQeDXYok6wghN7wwNVPF5bwkaNfS
Version    0.1.0, up 3 h 12 min
Network    open, 2 nodes known
Peers      1 connected: pear 1.3 ms
Listens    /ip4/192.0.2.1/tcp/7477
Shares     1 artifact (51 store paths); 2 of others known: agent search
Content    7 blobs, 1.2 GiB of 20.0 GiB; fetched 391 KiB, served 0 B (293 KiB of that over lanes)
Nix cache  http://127.0.0.1:7478/nix, 51 hits, 3 misses
`.trim(),
    )
  })

  it('of one that is alone, and told what to do', () => {
    const alone = {
      ...status,
      peers: [],
      http: null,
      listen: [],
      networks: [{ id: '', name: 'open', kind: 'open' as const, nodes: 1 }],
      artifacts: { own: 0, known: 0 },
      content: { ...status.content, pathsShared: 0, blobs: 0, bytes: 0, fetchedBytes: 0 },
      warnings: [
        {
          code: 'peers.none',
          message: 'No peers are connected.',
          next: 'Start an agent on another machine, or name one with --bootstrap.',
        },
        { code: 'clock.off', message: "This node's clock is 5 min behind.", next: 'Set it: timedatectl set-ntp true' },
      ],
    }
    expect(statusScreen(alone, pipe).join('\n')).toBe(
      `
apple  ● 2 things to look at

Peer id    12D3KooWEZXjE41uU4EL2gpkAQeDXYok6wghN7wwNVPF5bwkaNfS
Version    0.1.0, up 3 h 12 min
Network    open, no other node known yet
Peers      none
Listens    nowhere: this node only dials
Shares     nothing yet: agent publish <path>
Content    0 blobs, 0 B of 20.0 GiB
Nix cache  off

! No peers are connected.
  Start an agent on another machine, or name one with --bootstrap.

! This node's clock is 5 min behind.
  Set it: timedatectl set-ntp true
`.trim(),
    )
  })

  it('says in which networks the Nix store is given out', () => {
    const open = { id: '', name: 'open', kind: 'open' as const, nodes: 2, share: 'published' as const }
    const home = { ...open, name: 'home', kind: 'closed' as const, share: 'store' as const }
    const shown = (more: object) =>
      statusScreen({ ...status, networks: [open, home], ...more }, pipe).find((line) => line.startsWith('Shares'))
    expect(shown({})).toBe(
      'Shares     1 artifact and the Nix store in home (51 store paths); 2 of others known: agent search',
    )
    expect(shown({ artifacts: { own: 0, known: 0 } })).toBe('Shares     the Nix store in home (51 store paths)')
  })

  it('names the nearest of many peers, and those without a name by their id', () => {
    const peers = Array.from({ length: 9 }, (_, at) => ({ ...peer, name: `n${at}`, rttMs: 9 - at }))
    const text = statusScreen({ ...status, peers: [...peers, { ...peer, name: null, rttMs: null }] }, pipe).join('\n')
    expect(text).toContain('10 connected: n8 1.0 ms, n7 2.0 ms, n6 3.0 ms, n5 4.0 ms, 6 more')
    expect(statusScreen({ ...status, peers: [{ ...peer, name: null, rttMs: null }] }, pipe).join('\n')).toContain(
      '1 connected: 12D3KooW…iLiFq7q',
    )
  })

  it('fits a narrow terminal, but never cuts the peer id and what to do', () => {
    const warnings = [{ code: 'x', message: 'm'.repeat(100), next: 'n'.repeat(100) }]
    const lines = statusScreen({ ...status, warnings }, { ...pipe, columns: 30 })
    expect(lines.filter((line) => textWidth(line) > 30)).toHaveLength(3)
  })

  it('shows nothing of what a peer wrote but its printable characters', () => {
    const text = statusScreen({ ...status, name: HOSTILE, peers: [{ ...peer, name: HOSTILE }] }, pipe).join('\n')
    expect(text.replaceAll('\n', '')).not.toMatch(/[\p{Cc}\p{Cf}]/u)
    expect(text).toContain('a[2J]0;pwned bgpj.exe 1.3 ms')
  })
})

describe('tables', () => {
  const columns = [
    { title: 'NAME' },
    { title: 'SIZE', align: 'right' as const },
    { title: 'WHAT', cut: 'end' as const },
  ]
  const rows = [
    ['a', '1 B', 'short'],
    ['日本語', '10 KiB', 'a longer description of the thing'],
    ['e\u0301', '100', ''],
  ]

  it('line up, wide and combining characters included', () => {
    expect(table(columns, rows)).toEqual([
      'NAME      SIZE  WHAT',
      'a          1 B  short',
      '日本語  10 KiB  a longer description of the thing',
      'e\u0301          100',
    ])
  })

  it('shrink to the terminal where they may', () => {
    expect(table(columns, rows, 30)).toEqual([
      'NAME      SIZE  WHAT',
      'a          1 B  short',
      '日本語  10 KiB  a longer desc…',
      'e\u0301          100',
    ])
  })

  it('become blocks where there is no room for them', () => {
    expect(table(columns, rows, 18)).toEqual([
      'a',
      '  size 1 B',
      '  what short',
      '',
      '日本語',
      '  size 10 KiB',
      '  what a longer description of the thing',
      '',
      'e\u0301',
      '  size 100',
    ])
  })

  it('keep every line within the terminal, and every row on one line, whatever peers wrote', () => {
    const cell = fc.string({ unit: 'binary', maxLength: 60 })
    fc.assert(
      fc.property(fc.array(fc.tuple(cell, cell)), fc.integer({ min: 20, max: 100 }), (cells, width) => {
        const lines = table(
          [
            { title: 'A', cut: 'middle' },
            { title: 'B', cut: 'end' },
          ],
          cells,
          width,
        )
        expect(lines).toHaveLength(cells.length + 1)
        for (const line of lines) {
          expect(textWidth(line)).toBeLessThanOrEqual(width)
          expect(line).not.toMatch(/[\p{Cc}\p{Cf}]/u)
        }
      }),
    )
  })

  it('shorten at the end and in the middle', () => {
    expect(shorten('abcdefgh', 5)).toBe('abcd…')
    expect(shorten('abcdefgh', 5, 'middle')).toBe('ab…gh')
    expect(shorten('日本語', 4)).toBe('日…')
    expect(shorten('abc', 3)).toBe('abc')
  })

  it('set further lines of a value below its first', () => {
    expect(
      fields([
        ['A', ['1', '2']],
        ['Long', '3'],
      ]),
    ).toEqual(['A     1', '      2', 'Long  3'])
  })
})

describe('text of others', () => {
  it('loses what acts on a terminal, and stays on one line', () => {
    expect(printable(HOSTILE)).toBe('a[2J]0;pwned bgpj.exe')
    expect(printable('a\u0300\u0301\u0302\u0303\u0304\u0305')).toBe('a\u0300\u0301\u0302')
    expect(printable('Größe 日本語 👍 ok')).toBe('Größe 日本語 👍 ok')
  })

  it('is the same value in JSON, with all of that escaped', () => {
    fc.assert(
      fc.property(fc.string({ unit: 'binary' }), (text) => {
        const json = printableJson({ text }, 2)
        expect(JSON.parse(json)).toEqual(JSON.parse(JSON.stringify({ text })))
        expect(json.replaceAll('\n', '')).not.toMatch(/[\p{Cc}\p{Cf}]/u)
      }),
    )
  })
})

describe('measures', () => {
  it('read well', () => {
    expect([0, 999, 1000, 1024, 102_350, 1_048_576, 21_474_836_480, 1e15].map(showSize)).toEqual([
      '0 B',
      '999 B',
      '1.0 KiB',
      '1.0 KiB',
      '100 KiB',
      '1.0 MiB',
      '20.0 GiB',
      '909 TiB',
    ])
    expect([0, 59.9, 60, 61, 3_600, 7_260, 86_400, 90_000].map(showDuration)).toEqual([
      '0 s',
      '59 s',
      '1 min',
      '1 min 1 s',
      '1 h',
      '2 h 1 min',
      '1 d',
      '1 d 1 h',
    ])
    expect([0.123, 1.26, 12.4, 1_234].map(showMs)).toEqual(['0.12 ms', '1.3 ms', '12 ms', '1.2 s'])
  })
})

describe('doctor screen', () => {
  it('marks what is ill, with what to do below', () => {
    const screen = doctorScreen(
      [
        { id: 'state', name: 'state', state: 'ok', message: '/s', next: 'never shown' },
        { id: 'port.taken', name: 'port', state: 'failed', message: 'taken', next: 'Choose another.' },
      ],
      pipe,
    )
    expect(screen.join('\n')).toBe('✓ state  /s\n✗ port   taken\n         Choose another.\n\n1 thing to look at.')
  })
})

describe('progress', () => {
  it('redraws one line that fits, with bar, sizes, rate and time left, and removes it', () => {
    const screen = new Captured(80)
    let nowMs = 0
    {
      using progress = new Progress(screen, 'Fetching hello', () => nowMs)
      progress.show(0, 1_000_000)
      nowMs = 50
      progress.show(10, 1_000_000)
      nowMs = 1_000
      progress.show(500_000, 1_000_000)
      const lines = screen.text.split('\r\x1b[K')
      expect(lines).toHaveLength(3)
      expect(lines[2]).toBe('Fetching hello  ███████████░░░░░░░░░░░  488 KiB of 977 KiB, 488 KiB/s, 1 s left')
    }
    expect(screen.text.endsWith('\r\x1b[K')).toBe(true)
    expect(plain(screen.text)).toBe('')
  })

  it('reckons the rate without what a former run had done', () => {
    const screen = new Captured(100)
    let nowMs = 0
    using progress = new Progress(screen, 'Fetching', () => nowMs)
    progress.show(900_000, 1_000_000)
    nowMs = 1_000
    progress.show(950_000, 1_000_000)
    expect(screen.text).toContain('928 KiB of 977 KiB, 48.8 KiB/s, 1 s left')
  })

  it('leaves the bar out where there is no room, and everything where nobody looks', () => {
    const screen = new Captured(30)
    using narrow = new Progress(screen, 'Fetching hello')
    narrow.show(1, 2)
    expect(textWidth(screen.text.split('\x1b[K').at(-1) ?? '')).toBeLessThan(30)
    using none = new Progress(undefined, 'Fetching')
    none.show(1, 2)
  })
})
