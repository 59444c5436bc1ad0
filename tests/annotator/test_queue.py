from __future__ import annotations

from labelwise.annotator.queue import EMPTY, QueryQueue
from labelwise.datasets.queries import Query, QueryFile


def batch(*queries: Query) -> QueryQueue:
    return QueryQueue(QueryFile(queries, "margin", None, 1))


B = Query("b", 10, 20, (7, 2, 5), (1, 2, 3), 0.5)
A = Query("a", 10, 20, (4,), (4,))


def shown(queue: QueryQueue, without: str = "") -> list[tuple[str, int, int, int]]:
    questions = queue.upcoming(lambda query: query.id != without)
    return [(question.query.id, question.x, question.y, question.place) for question in questions]


def test_questions_come_image_by_image_and_from_left_to_right() -> None:
    assert shown(batch(B, A)) == [("b", 2, 2, 1), ("b", 5, 3, 2), ("b", 7, 1, 3), ("a", 4, 4, 1)]
    assert next(batch(B).upcoming(lambda query: True)).described() == {
        "id": "b", "x": 2, "y": 2, "width": 20, "height": 10, "place": 1, "of": 3
    }  # fmt: skip


def test_images_come_least_sure_first_and_as_listed_without_a_model() -> None:
    def ids(*uncertainties: float | None) -> str:
        queue = batch(*(Query(name, 9, 9, (1,), (1,), sure) for name, sure in zip("abcd", uncertainties, strict=False)))
        return "".join(id for id, *_ in shown(queue))

    assert ids(0.1, 0.9, 0.5) == "bca"
    assert ids(0.2, 0.9, 0.2, 0.9) == "bdac", "equals stay as they are listed"
    assert ids(None, None, None) == "abc"


def test_the_order_of_the_images_does_not_tell_batches_apart() -> None:
    surer = Query("b", 10, 20, (7, 2, 5), (1, 2, 3), 0.0)
    assert batch(A, B).batch == batch(A, surer).batch


def test_an_answered_question_is_not_asked_and_comes_back_when_taken_back() -> None:
    queue = batch(B, A)
    for x, y in ((2, 2), (5, 3), (7, 1)):
        queue.answer("b", x, y)
    assert (queue.done, queue.total, shown(queue)) == (3, 4, [("a", 4, 4, 1)])
    queue.take_back("b", 5, 3)
    assert (queue.done, shown(queue)) == (2, [("b", 5, 3, 2), ("a", 4, 4, 1)])
    assert not queue.is_answered("b", 5, 3) and queue.is_answered("b", 2, 2)


def test_answers_count_once_and_only_where_there_was_a_question() -> None:
    queue = batch(B)
    for _ in range(2):
        queue.answer("b", 2, 2)
        queue.answer("b", 0, 0)
        queue.answer("unknown", 2, 2)
    assert queue.done == 1
    queue.take_back("b", 0, 0)
    assert queue.done == 1 and queue.open_in("b") == 2 and queue.open_in("unknown") == 0


def test_an_image_that_cannot_be_asked_about_is_passed_over_and_stays_open() -> None:
    queue = batch(B, A)
    assert shown(queue, without="b") == [("a", 4, 4, 1)]
    assert queue.open_in("b") == 3 and len(shown(queue)) == 4


def test_a_batch_is_known_by_its_questions_alone() -> None:
    same = Query("b", 10, 20, (2, 5, 7), (2, 3, 1), 0.1)
    assert batch(B).batch == batch(same).batch != batch(A).batch
    assert batch(B, A).batch != batch(B).batch


def test_without_queries_nothing_is_asked() -> None:
    queue = QueryQueue(EMPTY)
    assert (queue.done, queue.total, shown(queue)) == (0, 0, [])
    assert queue.uncertainty("a") is None and batch(B).uncertainty("b") == 0.5
