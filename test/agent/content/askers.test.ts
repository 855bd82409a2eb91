/** Who is told of whom: those who asked for the same blob in the same network a short while ago, and nobody else. */
import { expect, test } from 'vitest'
import { Askers } from '../../../agent/content/askers.ts'

test('who asks is told who asked before, the latest first, and not of himself', () => {
  const askers = new Askers(() => 0)
  expect(askers.add('a', 'blob', 'net')).toEqual([])
  expect(askers.add('b', 'blob', 'net')).toEqual(['a'])
  expect(askers.add('c', 'blob', 'net')).toEqual(['b', 'a'])
  expect(askers.add('a', 'blob', 'net')).toEqual(['c', 'b'])
})

test('networks and blobs are apart', () => {
  const askers = new Askers(() => 0)
  askers.add('a', 'blob', 'net')
  expect(askers.add('b', 'blob', 'other')).toEqual([])
  expect(askers.add('b', 'other', 'net')).toEqual([])
})

test('who asked long ago is forgotten, and no more are named than may be', () => {
  let now = 0
  const askers = new Askers(() => now)
  askers.add('old', 'blob', 'net')
  now = 31_000
  expect(askers.add('a', 'blob', 'net')).toEqual([])
  for (let at = 0; at < 40; at++) askers.add(`p${at}`, 'blob', 'net')
  expect(askers.add('b', 'blob', 'net')).toHaveLength(16)
})

test('only so many blobs are remembered', () => {
  const askers = new Askers(() => 0)
  askers.add('a', 'first', 'net')
  for (let at = 0; at < 1_000; at++) askers.add('a', `blob-${at}`, 'net')
  expect(askers.add('b', 'first', 'net')).toEqual([])
  expect(askers.add('b', 'blob-999', 'net')).toEqual(['a'])
})
