import threading

from uwsgi_tasks.redis.gate import Gate


def never():
    return False


def in_background(call):
    """Start *call* in a thread; return that, and a list that has its answer then."""
    answers = []
    thread = threading.Thread(target=lambda: answers.append(call()), daemon=True)
    thread.start()
    return thread, answers


def test_many_are_inside_at_a_time():
    gate = Gate()
    assert [gate.enter() for _ in range(3)] == [True] * 3


def test_nobody_enters_while_one_is_alone():
    gate = Gate()
    assert gate.enter_alone(never)
    assert not gate.enter()
    gate.leave()
    assert gate.enter()


def test_who_is_to_be_alone_waits_until_the_others_have_left():
    gate = Gate()
    gate.enter()
    gate.enter()
    thread, answers = in_background(lambda: gate.enter_alone(never))
    gate.leave()
    assert answers == []
    gate.leave()
    thread.join(10)
    assert (answers, gate.is_closed) == ([True], True)


def test_a_second_one_waits_until_the_first_one_has_left():
    gate = Gate()
    gate.enter_alone(never)
    thread, answers = in_background(lambda: gate.enter_alone(never))
    gate.leave()
    thread.join(10)
    assert (answers, gate.enter()) == ([True], False)


def test_who_gives_up_waiting_for_the_others_leaves_it_open():
    gate = Gate()
    gate.enter()
    assert not gate.enter_alone(lambda: True)
    assert gate.enter()


def test_who_gives_up_waiting_for_another_one_leaves_it_closed():
    gate = Gate()
    gate.enter_alone(never)
    assert not gate.enter_alone(lambda: True)
    assert not gate.enter()
