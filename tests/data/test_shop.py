"""Tests of the builder of MovieLens: ratings in the order of time, and a row of its own for each category."""

from jaxdistill.data.builders.shop import _ratings

ITEMS = [
    {"item_id": "1", "release_year": "1995", "class": "Comedy Drama"},
    {"item_id": "2", "release_year": "V", "class": "Action Comedy Drama War"},
]
USERS = [
    {"user_id": "1", "age": "24", "gender": "F", "occupation": "writer"},
    {"user_id": "2", "age": "7", "gender": "M", "occupation": "writer"},
]
RATINGS = [
    {"user_id": "1", "item_id": "1", "rating": "4", "timestamp": "30"},
    {"user_id": "2", "item_id": "1", "rating": "3.5", "timestamp": "10"},
    {"user_id": "1", "item_id": "2", "rating": "5", "timestamp": "20"},
]


def test_ratings_are_in_the_order_of_time():
    assert [record["label"] for record in _ratings(RATINGS, ITEMS, USERS)] == [0, 1, 1]


def test_each_category_has_a_row_of_its_own():
    first, second, third = (record["categories"].tolist() for record in _ratings(RATINGS, ITEMS, USERS))
    users, films = {first[0], second[0], third[0]}, {first[1], second[1], third[1]}
    assert len(users) == 2 and len(films) == 2 and not users & films and second[0] == third[0] and first[1] == third[1]
    assert first[2] != second[2] and first[3] != second[3] and first[4] == second[4]  # age, gender, occupation
    assert second[5] != third[5]  # an unknown year and 1995
    comedy, drama, none = third[6:]
    assert second[6:][1:] == [comedy, drama] and none not in second and len({comedy, drama, none}) == 3
    rows = {row for record in (first, second, third) for row in record}
    assert max(rows) < 2 + 2 + 2 + 2 + 1 + 2 + 4
